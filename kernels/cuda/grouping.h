#pragma once

// The tokens of each expert, from the experts of each token.

#include "common/model/limits.h"
#include "kernels/cuda/launch.h"

namespace ferry::cuda {

// Groups rows * top_k assignments by expert, stable in the order of (row, rank): offsets [num_experts + 1], entry_rows
// and entry_outs [rows * top_k]. An id outside [0, num_experts) is left out. num_experts <= kMaxExperts. workspace:
// GroupWorkspaceBytes(...), 16-byte aligned.
cudaError_t LaunchGroupByExpert(const int32_t* experts, int64_t rows, int64_t top_k, int64_t num_experts, int32_t* offsets,
                                int32_t* entry_rows, int32_t* entry_outs, void* workspace, cudaStream_t stream);
int64_t GroupWorkspaceBytes(int64_t rows, int64_t top_k, int64_t num_experts);

}  // namespace ferry::cuda
