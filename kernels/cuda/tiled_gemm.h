#pragma once

// Dense products with a weight matrix in the tiled layout (common/model/tiled_layout.h), dequantised in registers on its way
// to the tensor cores: no dequantised copy exists in memory.
//
//   out[m, n] (+)= act[m, k] W[n, k]^T + bias[n]
//
//   act   [m, k]  BF16, or F16 (capability 7.5 has no bf16 products); rows `act_stride` elements apart
//   W     [n, k]  tiled: MXFP4, Q8_0, Q4_0, BF16, F16 or F32; k a multiple of 32
//   bias  [n]     F32, or null
//   out   [m, n]  F32, or the type of act; rows `out_stride` elements apart. accumulate: out += (F32 only)
//
// Weights are rounded to the activations' type: MXFP4 exactly, Q8_0, Q4_0, F16 and F32 to 8 bits of mantissa (relative
// error
// <= 2^-8 a weight; 2^-11 with F16); sums are F32. A row's result depends on that row and the matrix, and on m only
// through the choice between two kernels: one for m <= device.few_rows_dense, one for more.
//
// MXFP4 scales are exact from 2^-69 to 2^65 with BF16 activations, 2^-23 to 2^1 with F16; below, weights lose bits,
// above, they become infinite or NaN.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/model/dtype.h"
#include "kernels/cuda/product_device.h"

namespace ferry::cuda {

struct TiledGemmArgs {
  const void* act = nullptr;  // 16-byte aligned, act_stride a multiple of 8
  DType act_type = DType::kBF16;
  int64_t act_stride = 0;
  const void* weight = nullptr;  // 128-byte aligned: codes
  int64_t scales_offset = 0;     // TiledLayout::scales_offset: bytes from `weight`
  DType weight_type = DType::kF32;
  int64_t m = 0, n = 0, k = 0;
  const float* bias = nullptr;
  void* out = nullptr;  // aligned to its element
  DType out_type = DType::kF32;
  int64_t out_stride = 0;
  bool accumulate = false;
};

// Queues the product on `stream`. Null, or static text: "argument ..." is the caller's mistake, anything else is CUDA's
// (cudaGetErrorString). m == 0: nothing is done. Needs no workspace; may be captured in a graph.
const char* TiledGemm(const ProductDevice& device, const TiledGemmArgs& args, cudaStream_t stream);

}  // namespace ferry::cuda
