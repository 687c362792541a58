#include "kernels/cuda/staging.h"

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

absl::StatusOr<Staging> Staging::Create(cudaStream_t stream) {
  Staging out;
  out.stream_ = stream;
  for (int i = 0; i < kBuffers; ++i) {
    Buffer buffer;
    ASSIGN_OR_RETURN(buffer.memory, PinnedBuffer::Allocate(kBufferBytes));
    ASSIGN_OR_RETURN(buffer.read, StreamEvent::Create());
    out.buffers_.push_back(std::move(buffer));
  }
  return out;
}

absl::StatusOr<std::byte*> Staging::Reserve(int64_t bytes) {
  if (bytes < 0 || bytes > kBufferBytes) return Internal("staging of %d bytes at once, want at most %d", bytes, kBufferBytes);
  bytes = AlignUp(bytes, 256);
  if (used_ + bytes > kBufferBytes) {
    Buffer& full = buffers_[current_];
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(full.read.get(), stream_), "recording an event"));
    full.pending = true;
    current_ = (current_ + 1) % kBuffers;
    used_ = 0;
    Buffer& next = buffers_[current_];
    if (next.pending) RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(next.read.get()), "waiting for a staging buffer"));
    next.pending = false;
  }
  std::byte* const out = buffers_[current_].memory.data() + used_;
  used_ += bytes;
  return out;
}

absl::StatusOr<Workspace> Workspace::Create(int64_t bytes) {
  Workspace out;
  ASSIGN_OR_RETURN(out.memory_, DeviceMemory::Allocate(bytes));
  return out;
}

absl::StatusOr<std::byte*> Workspace::Reserve(int64_t bytes) {
  if (bytes > memory_.bytes()) {
    memory_ = DeviceMemory();  // first, so that the larger one may take its place; waits for the device
    ASSIGN_OR_RETURN(memory_, DeviceMemory::Allocate(AlignUp(bytes, 1 << 20)));
  }
  return memory_.data();
}

}  // namespace ferry::cuda
