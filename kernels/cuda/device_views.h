#pragma once

// The arguments of ops.h as the launchers take them.

#include "kernels/cuda/launch.h"
#include "kernels/cuda/product_matrix.h"
#include "kernels/cuda/rope_store.h"
#include "kernels/ops.h"

namespace ferry::cuda {

inline DeviceRows RowsOf(const Tensor& tensor) { return {tensor.data, tensor.dtype, tensor.rows, tensor.cols, tensor.stride}; }
inline DeviceTiles TilesOf(const TiledMatrix& matrix) {
  const TiledLayout& layout = matrix.layout;
  return {matrix.data,       layout.dtype,       layout.rows,          layout.cols,
          layout.code_bytes, layout.scale_bytes, layout.scales_offset, layout.rows_offset};
}
// A matrix that begins `offset` bytes into a record; `bias`: likewise, negative without one.
inline ProductMatrix MatrixOf(const TiledLayout& layout, int64_t offset = 0, int64_t bias = -1) {
  return {layout.dtype, offset, offset + layout.scales_offset, offset + layout.rows_offset, bias};
}
inline DeviceKv KvOf(const KvLayer& cache) {
  return {cache.keys, cache.values, cache.key_type, cache.num_blocks, cache.num_kv_heads, cache.head_dim};
}

}  // namespace ferry::cuda
