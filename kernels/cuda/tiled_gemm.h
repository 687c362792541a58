#pragma once

// Dense products with a weight matrix in the tiled layout (common/model/tiled_layout.h), dequantised in registers on its way
// to the tensor cores. Of direct types (weight_types.h) no dequantised copy exists in memory; other types are expanded a part at
// a time for more than device.few_rows_dense rows.
//
//   out[m, n] (+)= act[m, k] W[n, k]^T + bias[n]
//
//   act   [m, k]  BF16, or F16 (capability 7.5 has no bf16 products); rows `act_stride` elements apart
//   W     [n, k]  tiled, of any type in common/model/formats; k a multiple of 32
//   bias  [n]     F32, or null
//   out   [m, n]  F32, or the type of act; rows `out_stride` elements apart. accumulate: out += (F32 only)
//
// Weights are rounded to the activations' type: MXFP4 exactly, the others to 8 bits of mantissa (relative error <= 2^-8 a weight;
// 2^-11 with F16); sums are F32. A row's result depends on that row and the matrix, and on m only
// through the choice between two kernels: one for m <= device.few_rows_dense, one for more.
//
// MXFP4 scales are exact from 2^-69 to 2^65 with BF16 activations, 2^-23 to 2^1 with F16; below, weights lose bits,
// above, they become infinite or NaN.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/model/dtype.h"
#include "kernels/cuda/product_device.h"
#include "kernels/cuda/product_matrix.h"

namespace ferry::cuda {

struct TiledGemmArgs {
  const void* act = nullptr;  // 16-byte aligned, act_stride a multiple of 8
  DType act_type = DType::kBF16;
  int64_t act_stride = 0;
  const void* weight = nullptr;  // 128-byte aligned: codes
  ProductMatrix matrix;          // bytes from `weight`; its bias is not used
  int64_t m = 0, n = 0, k = 0;
  const float* bias = nullptr;
  void* out = nullptr;  // aligned to its element
  DType out_type = DType::kF32;
  int64_t out_stride = 0;
  bool accumulate = false;
  Expansion expansion;  // of DenseExpansionBytes at least, where that is not 0
};

// The least expansion for m rows of activations by weights of `type` with k columns; 0 when they are decoded on the way.
int64_t DenseExpansionBytes(const ProductDevice& device, DType act_type, int64_t m, DType type, int64_t k);

// Queues the product on `stream`. Null, or static text: "argument ..." is the caller's mistake, anything else is CUDA's
// (cudaGetErrorString). m == 0: nothing is done. May be captured in a graph.
const char* TiledGemm(const ProductDevice& device, const TiledGemmArgs& args, cudaStream_t stream);

}  // namespace ferry::cuda
