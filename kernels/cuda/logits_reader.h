#pragma once

// Ops::ReadLogits of the CUDA backend: what logits.h finds on the device, and whole rows for requests that need them.

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"
#include "kernels/cuda/compute_queue.h"
#include "kernels/cuda/host_transfers.h"
#include "kernels/cuda/staging.h"
#include "kernels/ops.h"

namespace ferry::cuda {

// One thread. The device is current in each call; the arguments of the constructor outlive this.
class LogitsReader {
 public:
  LogitsReader(ComputeQueue& queue, HostTransfers& transfers, Workspace& workspace)
      : queue_(queue), transfers_(transfers), workspace_(workspace) {}

  // ops.h, ReadLogits. The caller has checked the arguments.
  absl::StatusOr<std::vector<LogitsResult>> Read(Tensor logits, std::span<const LogitsRequest> requests);

 private:
  // Fills the results of rows [first, first + count) of `logits`, apart from those whose rows are downloaded.
  absl::Status Summarize(Tensor logits, std::span<const LogitsRequest> requests, int64_t first, int64_t count, int64_t max_top,
                         std::vector<LogitsResult>& results);

  ComputeQueue& queue_;
  HostTransfers& transfers_;
  Workspace& workspace_;
};

}  // namespace ferry::cuda
