#include "kernels/cuda/products.h"

#include <algorithm>

#include "kernels/cuda/expand.h"
#include "kernels/cuda/weight_types.h"
#include "kernels/integer_division.h"

namespace ferry::cuda {
namespace {

// What one task's matrix takes in the expansion: tiles, then its bias.
struct ExpandedBytes {
  int64_t codes = 0, all = 0;
};
ExpandedBytes BytesOf(int64_t rows, int64_t cols) {
  const int64_t codes = AlignUp(rows, 16) * cols * 2;
  return {codes, AlignUp(codes + rows * 4, 256)};
}

cudaError_t LaunchDirect(const ProductDevice& device, ProductKernel kernel, const ProductParams& params, bool fused,
                         cudaStream_t stream) {
  return kernel == ProductKernel::kWgmma ? LaunchProductsWgmma(device, params, fused, stream)
                                         : LaunchProductsMma(params, fused, stream);
}

// Rows [first_row, first_row + num_rows) of the weights of tasks [first_task, first_task + num_tasks).
cudaError_t LaunchPart(const ProductDevice& device, ProductKernel kernel, const ProductParams& params, bool fused,
                       const Expansion& expansion, int64_t first_row, int64_t num_rows, int first_task, int num_tasks,
                       cudaStream_t stream) {
  const ExpandedBytes bytes = BytesOf(num_rows, params.k);
  const int matrices = fused ? 2 : 1;
  ProductParams part = params;
  part.num_tasks = num_tasks;
  std::copy_n(params.tasks + first_task, num_tasks, part.tasks);
  part.n = static_cast<int32_t>(num_rows);
  part.out = static_cast<std::byte*>(params.out) + first_row * (params.out_type == DType::kF32 ? 4 : 2);
  if (params.bias != nullptr) part.bias = params.bias + first_row;
  for (int m = 0; m < matrices; ++m) {
    const ProductMatrix& matrix = m == 0 ? params.first : params.second;
    ExpandParams expand;
    expand.num_tasks = num_tasks;
    for (int t = 0; t < num_tasks; ++t) expand.weights[t] = params.tasks[first_task + t].weights;
    expand.matrix = matrix;
    expand.cols = params.k;
    expand.first_row = static_cast<int32_t>(first_row);
    expand.num_rows = static_cast<int32_t>(num_rows);
    expand.out = expansion.data + m * bytes.all;
    expand.task_bytes = matrices * bytes.all;
    expand.bias_at = bytes.codes;
    if (const cudaError_t error = LaunchExpand(expand, params.act_type, stream); error != cudaSuccess) return error;
    (m == 0 ? part.first : part.second) = {
        .type = params.act_type, .codes = m * bytes.all, .bias = matrix.bias < 0 ? -1 : m * bytes.all + bytes.codes};
  }
  for (int t = 0; t < num_tasks; ++t) part.tasks[t].weights = expansion.data + t * matrices * bytes.all;
  return LaunchDirect(device, kernel, part, fused, stream);
}

cudaError_t LaunchExpanded(const ProductDevice& device, ProductKernel kernel, const ProductParams& params, bool fused,
                           const Expansion& expansion, cudaStream_t stream) {
  const int matrices = fused ? 2 : 1;
  int64_t rows = params.n;
  if (matrices * BytesOf(rows, params.k).all > expansion.bytes) {
    rows = expansion.bytes / matrices / (BytesOf(kExpandedRows, params.k).all) * kExpandedRows;
    if (rows == 0) return cudaErrorInvalidValue;
  }
  const auto tasks = static_cast<int>(expansion.bytes / (matrices * BytesOf(rows, params.k).all));
  for (int64_t row = 0; row < params.n; row += rows) {
    for (int task = 0; task < params.num_tasks; task += tasks) {
      const cudaError_t error = LaunchPart(device, kernel, params, fused, expansion, row, std::min<int64_t>(rows, params.n - row),
                                           task, std::min(tasks, params.num_tasks - task), stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace

bool NeedsExpansion(ProductKernel kernel, DType type) { return kernel != ProductKernel::kFew && !IsAmong(DirectTypes{}, type); }
bool NeedsExpansion(ProductKernel kernel, DType first, DType second) { return first != second || NeedsExpansion(kernel, first); }
int64_t LeastExpansionBytes(int64_t cols, int matrices) { return matrices * BytesOf(kExpandedRows, cols).all; }

cudaError_t LaunchProducts(const ProductDevice& device, ProductKernel kernel, ProductParams params, bool fused,
                           const Expansion& expansion, cudaStream_t stream) {
  params.capability = device.capability;
  if (fused ? NeedsExpansion(kernel, params.first.type, params.second.type) : NeedsExpansion(kernel, params.first.type)) {
    // Few rows of a gate and an up of two types have no kernel of their own.
    if (kernel == ProductKernel::kFew) {
      kernel = device.wgmma && params.act_type == DType::kBF16 ? ProductKernel::kWgmma : ProductKernel::kMma;
    }
    return LaunchExpanded(device, kernel, params, fused, expansion, stream);
  }
  if (kernel == ProductKernel::kFew) return LaunchProductsFew(params, fused, stream);
  return LaunchDirect(device, kernel, params, fused, stream);
}

cudaError_t LaunchProductsFew(const ProductParams& params, bool fused, cudaStream_t stream) {
  const DType type = params.first.type;
  if (IsAmong(DirectTypes{}, type)) return LaunchFewDirect(params, fused, stream);
  if (IsAmong(BlocksTypes{}, type)) return LaunchFewBlocks(params, fused, stream);
  if (IsAmong(GridsTypes{}, type)) return LaunchFewGrids(params, fused, stream);
  return LaunchFewIk(params, fused, stream);
}

}  // namespace ferry::cuda
