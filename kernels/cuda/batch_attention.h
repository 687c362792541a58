#pragma once

// Attention of a batch: the choice between the two kernels of attention.h for each of its sequences.

#include <cstdint>

#include "common/status.h"
#include "kernels/cuda/compute_queue.h"
#include "kernels/cuda/cuda_batch.h"
#include "kernels/cuda/staging.h"

namespace ferry::cuda {

// The arguments of Ops::Attention, checked by the caller.
struct BatchAttention {
  const CudaBatch& batch;
  const int64_t first_row;  // of the batch, the row of q's row 0
  const Tensor q;
  const KvLayer& cache;
  const AttentionParams& params;
  const Tensor out;
  const bool warpgroups;  // ProductDevice::wgmma
};

// Internal: CUDA refused a launch. ResourceExhausted: no room for a larger workspace.
absl::Status QueueAttention(const BatchAttention& call, ComputeQueue& queue, Workspace& workspace);

}  // namespace ferry::cuda
