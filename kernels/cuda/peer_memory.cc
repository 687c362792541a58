#include "kernels/cuda/peer_memory.h"

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/log.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/integer_division.h"

namespace ferry::cuda {
namespace {

static_assert(PeerMemory::kKeyBytes == sizeof(cudaIpcMemHandle_t));

// A handle names the driver's block that an allocation lies in. An allocation of whole blocks has them for itself, so that no
// other memory of this process goes along.
constexpr int64_t kBlockBytes = int64_t{2} << 20;

class CudaPeerMemory final : public PeerMemory {
 public:
  CudaPeerMemory(std::span<std::byte> bytes, std::string key, DeviceMemory own, CopyEngine* copies, cudaStream_t compute)
      : bytes_(bytes), key_(std::move(key)), own_(std::move(own)), copies_(*copies), compute_(compute) {
    cudaGetDevice(&device_);
    copies_.AddShared(bytes_);
  }
  ~CudaPeerMemory() override {
    copies_.RemoveShared(bytes_);
    cudaSetDevice(device_);  // another thread may end it
    absl::Status ended = CudaStatus(cudaStreamSynchronize(compute_), "waiting for the use of shared device memory");
    if (key_.empty()) ended.Update(CudaStatus(cudaIpcCloseMemHandle(bytes_.data()), "unmapping another device's memory"));
    if (!ended.ok()) spdlog::warn("{}", ended.ToString());
  }
  std::span<std::byte> bytes() const override { return bytes_; }
  const std::string& key() const override { return key_; }

 private:
  const std::span<std::byte> bytes_;
  const std::string key_;
  const DeviceMemory own_;  // empty: mapped
  CopyEngine& copies_;
  const cudaStream_t compute_;
  int device_ = 0;
};

// How much memory lies behind a mapped address; by the driver, since the runtime does not say.
absl::StatusOr<size_t> SizeOf(void* data) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  RETURN_IF_ERROR(
      CudaStatus(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function, 12000, cudaEnableDefault, &found),
                 "asking for a mapping's size"));
  if (found != cudaDriverEntryPointSuccess) return FailedPrecondition("the driver does not say how large a mapping is");
  CUdeviceptr base = 0;
  size_t size = 0;
  const auto address = reinterpret_cast<CUdeviceptr>(data);
  const auto range_of = reinterpret_cast<CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr)>(function);
  if (range_of(&base, &size, address) != CUDA_SUCCESS) return FailedPrecondition("the driver knows no mapping there");
  return size - (address - base);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PeerMemory>> SharePeerMemory(int64_t bytes, CopyEngine* copies, cudaStream_t compute) {
  if (bytes < 1) return InvalidArgument("bytes is %d, want at least 1", bytes);
  ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(AlignUp(bytes, kBlockBytes)));
  cudaIpcMemHandle_t handle;
  const absl::Status shared = CudaStatus(cudaIpcGetMemHandle(&handle, memory.data()), "sharing device memory");
  if (!shared.ok()) return FailedPrecondition("%s", shared.message());
  std::string key(reinterpret_cast<const char*>(&handle), sizeof(handle));
  const std::span<std::byte> all(memory.data(), static_cast<size_t>(bytes));
  return std::make_unique<CudaPeerMemory>(all, std::move(key), std::move(memory), copies, compute);
}

absl::StatusOr<std::unique_ptr<PeerMemory>> MapPeerMemory(const std::string& key, int64_t bytes, CopyEngine* copies,
                                                          cudaStream_t compute) {
  cudaIpcMemHandle_t handle;
  if (key.size() != sizeof(handle) || bytes < 1) {
    return InvalidArgument("a key of %d bytes for %d of memory, want %d and at least 1", key.size(), bytes, sizeof(handle));
  }
  std::memcpy(&handle, key.data(), sizeof(handle));
  void* data = nullptr;
  const absl::Status mapped =
      CudaStatus(cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess), "mapping another device's memory");
  if (!mapped.ok()) return FailedPrecondition("%s", mapped.message());
  const absl::StatusOr<size_t> size = SizeOf(data);
  if (!size.ok() || *size < static_cast<size_t>(bytes)) {
    cudaIpcCloseMemHandle(data);
    RETURN_IF_ERROR(size.status());
    return InvalidArgument("the other process shares %d bytes, want %d", *size, bytes);
  }
  const std::span<std::byte> all(static_cast<std::byte*>(data), static_cast<size_t>(bytes));
  return std::make_unique<CudaPeerMemory>(all, std::string(), DeviceMemory(), copies, compute);
}

}  // namespace ferry::cuda
