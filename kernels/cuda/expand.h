#pragma once

// Weights as plain numbers: parts of matrices for product kernels that do not decode their type, and rows of an embedding table.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/products.h"

namespace ferry::cuda {

struct ExpandParams {
  const std::byte* weights[kMaxTasks];  // of the tasks
  int32_t num_tasks = 0;
  ProductMatrix matrix;  // of every task
  int32_t cols = 0;
  int32_t first_row = 0, num_rows = 0;  // of the matrix; first_row a multiple of 16
  std::byte* out = nullptr;             // of the first task: tiles of numbers, laid out as a matrix of num_rows rows
  int64_t task_bytes = 0;               // from task to task
  int64_t bias_at = 0;                  // where the rows' biases go; written when the matrix has some
};
// Rounds to `type`, BF16 or F16. cudaErrorInvalidValue for a weight type without a format.
// Bound: bytes of the weights and of the numbers through device memory; the numbers stay in L2 when they fit there.
cudaError_t LaunchExpand(const ExpandParams& params, DType type, cudaStream_t stream);

// LaunchEmbed (rows.h) for types that are not direct.
cudaError_t LaunchEmbedPacked(const DeviceTiles& table, const int32_t* token_ids, const DeviceRows& x, cudaStream_t stream);

}  // namespace ferry::cuda
