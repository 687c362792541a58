#pragma once

// Page-locked memory between host arrays and a stream. An operation copies its arguments here, so that the caller can reuse its
// memory at once while the device still reads.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"
#include "kernels/cuda/cuda_handles.h"

namespace ferry::cuda {

// A few buffers used in turn. One thread.
class Staging {
 public:
  static constexpr int kBuffers = 4;
  static constexpr int64_t kBufferBytes = 4 << 20;  // at 16 MiB in all the host copies while the device reads

  // `stream` must outlive this.
  static absl::StatusOr<Staging> Create(cudaStream_t stream);

  // Room for `bytes` <= kBufferBytes, 256-byte aligned. The caller queues the work that reads it before the next Reserve. Waits
  // only when the device is kBuffers - 1 whole buffers behind.
  absl::StatusOr<std::byte*> Reserve(int64_t bytes);

 private:
  struct Buffer {
    PinnedBuffer memory;
    StreamEvent read;      // passes when the device has read the buffer
    bool pending = false;  // `read` was recorded
  };
  cudaStream_t stream_ = nullptr;
  std::vector<Buffer> buffers_;
  int current_ = 0;
  int64_t used_ = 0;
};

// Enough for every operation of the models Ferry runs; an operation that could need more goes through its rows in parts of this
// size.
inline constexpr int64_t kWorkspaceBytes = int64_t{192} << 20;

// The part of it that expanded weights (product_matrix.h) take: more experts at once fill more multiprocessors.
inline constexpr int64_t kExpansionBytes = int64_t{96} << 20;

// Device memory for the inner results of one operation. All operations share it, one after the other in the stream's
// order; it grows when one needs more, which waits for the device, and never shrinks.
class Workspace {
 public:
  static absl::StatusOr<Workspace> Create(int64_t bytes);
  // 256-byte aligned, until the next Reserve. ResourceExhausted names the sizes.
  absl::StatusOr<std::byte*> Reserve(int64_t bytes);
  int64_t bytes() const { return memory_.bytes(); }

 private:
  DeviceMemory memory_;
};

}  // namespace ferry::cuda
