#pragma once

// A product for each head (ops.h, MatMulPerHead): the heads are the tasks of one launch of the product kernels, whose rows lie a
// head apart in wider ones.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/product_device.h"
#include "kernels/cuda/product_matrix.h"

namespace ferry::cuda {

struct HeadProductArgs {
  DeviceRows in, out;  // activations [rows, num_heads * (a head's part)]; `in` on 16 bytes, its stride and parts multiples of 8
  int64_t num_heads = 0;
  const std::byte* weights = nullptr;  // [num_heads][matrix_bytes], tiled, on 128 bytes
  int64_t matrix_bytes = 0;
  ProductMatrix matrix;  // bytes from the start of each; its bias is not used
  int64_t n = 0, k = 0;  // rows and columns of a matrix; k a multiple of 32
  // Device memory for HeadTableInts(in.rows, num_heads) ints, filled by QueueHeadTables for these very shapes.
  const int32_t* tables = nullptr;
  Expansion expansion;  // of HeadExpansionBytes at least, where that is not 0
};

// The least expansion for the matrices of one head; 0 when they are decoded on the way.
int64_t HeadExpansionBytes(const ProductDevice& device, const HeadProductArgs& args);

// Where the rows of each head begin, in steps of eight numbers of `in` and of OutStep numbers of `out`.
int64_t HeadTableInts(int64_t rows, int64_t num_heads);
cudaError_t QueueHeadTables(const HeadProductArgs& args, int32_t* tables, cudaStream_t stream);

// Null, or static text: "argument ..." is the caller's mistake, anything else is CUDA's.
const char* HeadProducts(const ProductDevice& device, const HeadProductArgs& args, cudaStream_t stream);

}  // namespace ferry::cuda
