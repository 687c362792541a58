#pragma once

// Device code that the product kernels share: which rows a task has, SwiGLU, and stores of one output.

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/products.h"
#include "kernels/cuda/weight_types.h"

namespace ferry::cuda {

// A task's place among the entries, read once a tile.
struct TaskRows {
  int first_entry = 0;
  int count = 0;  // rows the task really has: never more than its group
};
__device__ inline TaskRows RowsOf(const ProductParams& params, const ProductTask& task) {
  if (params.offsets == nullptr) return {0, task.rows};
  const int first = params.offsets[task.group], last = params.offsets[task.group + 1];
  return {first, min(task.rows, max(last - first, 0))};
}

// Tile `tile` of a launch: rows [first, first + count) of a task by one panel of weight rows. A task's rows are cut
// into as few blocks as fit, of equal size; its tiles follow each other along the panels, so that neighbours share
// their rows in L2.
struct ProductTile {
  int task = 0, panel = 0;
  int first = 0, count = 0;
};
__device__ inline ProductTile TileOf(const ProductParams& params, int tile, int token_tile, int panels) {
  int low = 0, high = params.num_tasks - 1;
  while (low < high) {  // the last task that starts at or before the tile
    const int middle = (low + high + 1) / 2;
    if (params.tasks[middle].first_tile <= tile)
      low = middle;
    else
      high = middle - 1;
  }
  const int rows = params.tasks[low].rows, local = tile - params.tasks[low].first_tile;
  const int blocks = (rows + token_tile - 1) / token_tile;
  const int block_rows = ((rows + blocks - 1) / blocks + 7) / 8 * 8;
  const int first = local / panels * block_rows;
  return {low, local % panels, first, min(block_rows, rows - first)};
}

// The row of `in` that is row `i` of the task, or -1 when it has none or it lies outside.
__device__ inline int64_t InputRow(const ProductParams& params, const ProductTask& task, const TaskRows& rows, int i) {
  if (i >= rows.count) return -1;
  int64_t row = task.first_row + i;
  if (params.gathered) row = params.gather != nullptr ? params.gather[rows.first_entry + i] : rows.first_entry + i;
  return row >= 0 && row < params.in_rows ? row : -1;
}
__device__ inline int64_t OutputRow(const ProductParams& params, const ProductTask& task, const TaskRows& rows, int i) {
  if (i >= rows.count) return -1;
  int64_t row = task.first_row + i;
  if (params.scattered) row = params.scatter != nullptr ? params.scatter[rows.first_entry + i] : rows.first_entry + i;
  return row >= 0 && row < params.out_rows ? row : -1;
}

// A matrix's bias in a task, or null.
__device__ inline const float* BiasOf(const ProductParams& params, const ProductTask& task, const ProductMatrix& matrix) {
  if (matrix.bias < 0) return params.bias;
  return reinterpret_cast<const float*>(task.weights + matrix.bias);
}

// (clamp(u, -limit, limit) + up_offset) * g * sigmoid(alpha * g) with g = min(gate, limit). NaN stays NaN.
__device__ inline float Glu(float gate, float up, const ProductParams& params) {
  const float g = gate > params.limit ? params.limit : gate;
  const float u = up > params.limit ? params.limit : up < -params.limit ? -params.limit : up;
  return __fdividef((u + params.up_offset) * g, 1.0f + __expf(-params.alpha * g));
}

__device__ inline void StoreOutput(const ProductParams& params, int64_t row, int column, float value) {
  const int64_t index = row * params.out_stride + column;
  if (params.out_type == DType::kF32) {
    float* out = static_cast<float*>(params.out) + index;
    *out = params.accumulate ? *out + value : value;
  } else if (params.out_type == DType::kBF16) {
    static_cast<__nv_bfloat16*>(params.out)[index] = FromFloat<__nv_bfloat16>(value);
  } else {
    static_cast<__half*>(params.out)[index] = FromFloat<__half>(value);
  }
}

// c [16 x 8] += a [16 x 16] b [16 x 8].
template <typename Act>
__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kIsBf16<Act>) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  } else {
    MmaF16(c, a, b0, b1);
  }
}

}  // namespace ferry::cuda
