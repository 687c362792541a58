#pragma once

// Transfers between host memory and the device in the order of the compute queue. Kernels copy small arrays: the copy engine
// serves its queues in the order of their requests, so a small copy would wait for every expert queued before it.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "common/status.h"
#include "kernels/cuda/compute_queue.h"
#include "kernels/cuda/copy_engine.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/staging.h"
#include "kernels/ops.h"

namespace ferry::cuda {

// One thread. The device is current in each call.
class HostTransfers {
 public:
  // `queue` and `copies` outlive this; `copies` knows which host memory is pinned.
  static absl::StatusOr<std::unique_ptr<HostTransfers>> Create(ComputeQueue* queue, const CopyEngine* copies);

  // The six calls of ops.h.
  absl::Status Upload(void* dst, std::span<const std::byte> host_src);
  absl::Status Download(std::span<std::byte> host_dst, const void* src);
  absl::Status UploadAsync(void* dst, std::span<const std::byte> host_src);
  absl::Status DownloadAsync(std::span<std::byte> host_dst, const void* src);
  absl::Status UploadAllAsync(std::span<const HostCopy> copies);
  absl::Status DownloadAllAsync(std::span<const HostCopy> copies);

  // Pinned memory for the arguments of one operation (Staging::Reserve).
  absl::StatusOr<std::byte*> Stage(int64_t bytes) { return staging_.Reserve(bytes); }
  // Has kernels write `host_dst`, in parts of `part_bytes` <= Staging::kBufferBytes, and waits for them. `queue_part`(i, to)
  // queues the one that writes part i to `to`, which lies in host_dst where kernels reach that. After an error
  // kernels that were queued may still write host_dst: the caller keeps it until the queue has passed.
  absl::Status Receive(std::span<std::byte> host_dst, int64_t part_bytes,
                       const std::function<absl::Status(int64_t part, std::byte* to)>& queue_part);
  // Whether a kernel can read and write `bytes` in place. False when they are not in one pinned or shared region.
  bool KernelsReach(std::span<const std::byte> bytes) const;

 private:
  HostTransfers(ComputeQueue* queue, const CopyEngine* copies) : queue_(*queue), copies_(*copies) {}
  absl::Status DownloadSmall(std::span<std::byte> host_dst, const void* src);
  bool KernelsCopyTogether(std::span<const HostCopy> copies) const;
  absl::Status CopyTogether(const char* name, std::span<const HostCopy> copies, bool upload);
  absl::Status DownloadInParts(std::span<std::byte> host_dst, const void* src);

  ComputeQueue& queue_;
  const CopyEngine& copies_;
  Staging staging_;
  PinnedBuffer downloads_[2];
  StreamEvent downloaded_[2];  // of downloads_
  PinnedBuffer signal_;        // one word: the number of the last small download that has arrived
  uint32_t num_small_ = 0;     // small downloads queued
};

}  // namespace ferry::cuda
