#pragma once

// The gated delta net over the rows of a batch: in parts that fit into the workspace.

#include <cstdint>

#include "common/status.h"
#include "kernels/cuda/compute_queue.h"
#include "kernels/cuda/cuda_batch.h"
#include "kernels/cuda/staging.h"

namespace ferry::cuda {

// The arguments of Ops::GatedDelta, checked by the caller.
struct BatchDelta {
  const CudaBatch& batch;
  const int64_t first_row;  // of the batch, the row of out's row 0
  const AttentionConfig& net;
  const DeltaInputs& inputs;
  const DeltaWeights& weights;
  const DeltaStates& states;
  const Tensor out;
};

// Unimplemented: no kernel for heads of that size. Internal: CUDA refused a launch.
absl::Status QueueGatedDelta(const BatchDelta& call, ComputeQueue& queue, Workspace& workspace);

}  // namespace ferry::cuda
