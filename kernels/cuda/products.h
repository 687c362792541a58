#pragma once

// The kernels behind tiled_gemm.h and expert_mlp.h, and the description of their work: a list of tasks (an expert each, or one
// dense matrix), each multiplying its own rows by its own weights. product_config.h chooses the kernel. Internal; callers check
// the arguments.
//
//   products_few*.cu   at most kFewTaskRows rows: every warp streams its weights once, and only rows are shared. Experts of most
//                      types are multiplied in whole numbers (products_dot.cuh), the rest and dense matrices in BF16 or F16
//   products_mma.cu    any rows: mma.sync, capability 7.5 and later
//   products_wgmma.cu  any rows: warpgroup products of capability 9.0a
//
// The last two decode the direct types (weight_types.h) on the way. Weights of another type are first written to an expansion
// buffer as numbers of the activations' type (expand.h), as many experts and rows of weights at once as fit.
//
// kFused: two matrices of the same shape, gate and up; out = the gated linear unit of both products. Otherwise one matrix.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/model/dtype.h"
#include "kernels/cuda/product_config.h"
#include "kernels/cuda/product_device.h"
#include "kernels/cuda/product_matrix.h"

namespace ferry::cuda {

inline constexpr int kMaxTasks = 128;  // of a launch: their table travels in the launch's parameters (4 KB)
inline constexpr int kFewTaskRows = 32;

struct ProductTask {
  const std::byte* weights = nullptr;
  int32_t group = 0;       // its entries are [offsets[group], offsets[group + 1]); without offsets all rows
  int32_t rows = 0;        // entries to compute
  int32_t first_row = 0;   // where the task's rows start in a compact buffer (the side without an index)
  int32_t first_tile = 0;  // among the tiles of the launch; set by AssignTiles
};

struct ProductParams {
  ProductTask tasks[kMaxTasks];
  int32_t num_tasks = 0;
  int32_t num_tiles = 0;

  int32_t capability = 0;  // of the GPU; set by LaunchProducts

  ProductMatrix first, second;  // gate and up, or `first` alone
  const float* bias = nullptr;  // of `first` when its `bias` is negative; may be null
  int32_t n = 0, k = 0;         // rows and columns of a matrix

  const int32_t* offsets = nullptr;
  // Row i of a task's input: gathered: gather ? gather[entry] : entry, of in_rows; else first_row + i. Likewise its
  // output.
  const void* in = nullptr;
  DType act_type = DType::kBF16;
  int64_t in_rows = 0, in_stride = 0;
  const int32_t* gather = nullptr;
  bool gathered = false;

  void* out = nullptr;
  DType out_type = DType::kBF16;
  int64_t out_rows = 0, out_stride = 0;
  const int32_t* scatter = nullptr;
  bool scattered = false;
  bool accumulate = false;

  float alpha = 0, limit = 0, up_offset = 0;

  // LaunchProductsFew: the weights are in place, so the kernel may load them before the previous launch has ended.
  bool overlaps = false;
};
static_assert(sizeof(ProductParams) <= 4096, "the parameters of a launch");

// Whether LaunchProducts uses the expansion.
bool NeedsExpansion(ProductKernel kernel, DType type);                 // one matrix
bool NeedsExpansion(ProductKernel kernel, DType first, DType second);  // gate and up
// Rows of weights that fit are a multiple of this, or all.
inline constexpr int64_t kExpandedRows = 384;
// The least expansion for matrices of `cols` columns, so many at once (1, or 2 for gate and up).
int64_t LeastExpansionBytes(int64_t cols, int matrices);

// Queues the tasks of `params`, all with one kernel. cudaErrorInvalidValue: it has no code for a weight type, or the expansion is
// too small.
cudaError_t LaunchProducts(const ProductDevice& device, ProductKernel kernel, ProductParams params, bool fused,
                           const Expansion& expansion, cudaStream_t stream);
// The same with the named kernel; `first` and `second` have one type.
cudaError_t LaunchProductsFew(const ProductParams& params, bool fused, cudaStream_t stream);
cudaError_t LaunchProductsMma(ProductParams params, bool fused, cudaStream_t stream);
cudaError_t LaunchProductsWgmma(const ProductDevice& device, ProductParams params, bool fused, cudaStream_t stream);
// LaunchProductsFew for a part of the types each; cudaErrorInvalidValue for those of the others.
cudaError_t LaunchFewDirect(const ProductParams& params, bool fused, cudaStream_t stream);
cudaError_t LaunchFewBlocks(const ProductParams& params, bool fused, cudaStream_t stream);
cudaError_t LaunchFewGrids(const ProductParams& params, bool fused, cudaStream_t stream);
cudaError_t LaunchFewIk(const ProductParams& params, bool fused, cudaStream_t stream);

// The capability, as 10 * major + minor, for which the code of this build that runs on the current device was written; 0: none.
int ProductCodeCapability();

// Lets the kernels use the shared memory that they need on the current device. usable: whether this build has code for it.
cudaError_t PrepareProductsWgmma(bool* usable);

// Sets the tasks' places among tiles of at most `token_tile` rows and `panel_rows` rows of weights.
inline void AssignTiles(ProductParams* params, int token_tile, int panel_rows) {
  const int panels = (params->n + panel_rows - 1) / panel_rows;
  int32_t tiles = 0;
  for (int t = 0; t < params->num_tasks; ++t) {
    params->tasks[t].first_tile = tiles;
    tiles += panels * ((params->tasks[t].rows + token_tile - 1) / token_tile);
  }
  params->num_tiles = tiles;
}

}  // namespace ferry::cuda
