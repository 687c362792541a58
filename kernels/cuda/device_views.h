#pragma once

// The arguments of ops.h as the launchers take them.

#include "kernels/cuda/launch.h"
#include "kernels/cuda/rope_store.h"
#include "kernels/ops.h"

namespace ferry::cuda {

inline DeviceRows RowsOf(const Tensor& tensor) { return {tensor.data, tensor.dtype, tensor.rows, tensor.cols, tensor.stride}; }
inline DeviceTiles TilesOf(const TiledMatrix& matrix) {
  const TiledLayout& layout = matrix.layout;
  return {matrix.data, layout.dtype, layout.rows, layout.cols, layout.code_bytes, layout.scale_bytes, layout.scales_offset};
}
inline DeviceKv KvOf(const KvLayer& cache) {
  return {cache.keys, cache.values, cache.key_type, cache.num_blocks, cache.num_kv_heads, cache.head_dim};
}

}  // namespace ferry::cuda
