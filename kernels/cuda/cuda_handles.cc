#include "kernels/cuda/cuda_handles.h"

#include <type_traits>

#include "common/log.h"

namespace ferry::cuda {
namespace {

template <typename T>
constexpr bool kMoveOnly =
    std::is_nothrow_move_constructible_v<T> && !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(kMoveOnly<Stream> && kMoveOnly<StreamEvent> && kMoveOnly<DeviceMemory> && kMoveOnly<PinnedBuffer>);

// A driver that shuts down with the process takes everything back itself.
void LogUnlessOk(cudaError_t error, const char* what) {
  if (error == cudaSuccess || error == cudaErrorCudartUnloading) return;
  spdlog::error("{}", std::string(CudaStatus(error, what).message()));
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // an error that the context survives is reported once
  const std::string message = absl::StrFormat("%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorNotSupported:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
      return absl::FailedPreconditionError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<Stream> Stream::Create() {
  Stream out;
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&out.stream_, cudaStreamNonBlocking), "making a stream"));
  return out;
}
Stream::~Stream() {
  if (stream_ != nullptr) LogUnlessOk(cudaStreamDestroy(stream_), "giving back a stream");
}

absl::StatusOr<StreamEvent> StreamEvent::Create() {
  StreamEvent out;
  RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&out.event_, cudaEventDisableTiming), "making an event"));
  return out;
}
StreamEvent::~StreamEvent() {
  if (event_ != nullptr) LogUnlessOk(cudaEventDestroy(event_), "giving back an event");
}

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(int64_t bytes) {
  if (bytes < 0) return InvalidArgument("cannot allocate %d bytes of device memory", bytes);
  DeviceMemory out;
  if (bytes == 0) return out;
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free device memory"));
    return ResourceExhausted("not enough device memory: %d bytes needed, %d of %d free", bytes, free_bytes, total_bytes);
  }
  RETURN_IF_ERROR(CudaStatus(error, "allocating device memory"));
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  return out;
}
DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) LogUnlessOk(cudaFree(data_), "freeing device memory");
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(int64_t bytes) {
  PinnedBuffer out;
  void* data = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable),
                             absl::StrFormat("allocating %d bytes of pinned host memory", bytes)));
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  return out;
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) LogUnlessOk(cudaFreeHost(data_), "freeing pinned host memory");
}

}  // namespace ferry::cuda
