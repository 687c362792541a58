#pragma once

// What every CUDA launcher of this folder shares with its caller: plain structs and cudaError_t, so that a .cu file
// needs no Abseil. A launcher queues its kernels on `stream` and returns what the launch returned; it checks only the
// limits of its own kernel (cudaErrorInvalidValue). Shapes are checked by CudaOps, which also turns the error into a
// Status.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/model/dtype.h"
#include "kernels/integer_division.h"

namespace ferry::cuda {

inline constexpr int kWarpSize = 32;

// Rows of F32, BF16 or F16 numbers; `stride` elements from row to row. ops.h's Tensor without its includes.
struct DeviceRows {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0, stride = 0;
};

// A tiled matrix (common/model/tiled_layout.h) without its includes.
struct DeviceTiles {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  int64_t code_bytes = 0, scale_bytes = 0, scales_offset = 0, rows_offset = 0;
};

// A grid of the given extents. cudaErrorInvalidConfiguration unless each is at least 1 and within what a device takes
// (2^31 - 1, 65535, 65535): the dimension that grows with the tokens belongs in x.
inline cudaError_t Grid(int64_t x, int64_t y, int64_t z, dim3* grid) {
  if (x < 1 || x > 0x7fffffff || y < 1 || y > 65535 || z < 1 || z > 65535) return cudaErrorInvalidConfiguration;
  *grid = dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
  return cudaSuccess;
}

#define FERRY_CUDA_RETURN_IF_ERROR(expression)                                                                       \
  do {                                                                                                               \
    if (const cudaError_t ferry_cuda_error = (expression); ferry_cuda_error != cudaSuccess) return ferry_cuda_error; \
  } while (false)

}  // namespace ferry::cuda
