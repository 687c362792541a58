#pragma once

// Where a matrix of weights in the tiled layout (common/model/tiled_layout.h) lies, in bytes from the start of a record or, for a
// dense matrix, of its data.

#include <cstddef>
#include <cstdint>

#include "common/model/dtype.h"

namespace ferry::cuda {

struct ProductMatrix {
  DType type = DType::kF32;
  int64_t codes = 0, scales = 0;
  int64_t headers = 0;  // the plane of rows; read for types that have one
  int64_t bias = -1;    // F32, one for each row; negative: none in the record
};

// Device memory for weights that a product kernel cannot decode on the way (products.h): 256-byte aligned, free for any use
// between two operations.
struct Expansion {
  std::byte* data = nullptr;
  int64_t bytes = 0;
};

}  // namespace ferry::cuda
