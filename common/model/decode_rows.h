#pragma once

// Decodes stored weights to floats. A block of each computable type in a GGUF file:
//
//   F32, F16, BF16   the number itself
//   Q8_0   32 elements in 34 bytes: f16 d, int8 q[32]                value = d * q
//   Q4_0   32 elements in 18 bytes: f16 d, 16 bytes of 4-bit codes   value = d * (code - 8)
//   MXFP4  32 elements in 17 bytes: e8m0 e, 16 bytes of 4-bit codes  value = 2^(e - 127) * fp4(code), NaN for e 255
//
// Byte i of the codes holds element i in its low and element i + 16 in its high half. The number formats are half.h's.

#include <cstddef>
#include <span>

#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

// Decodes out.size() elements, which are whole blocks of `dtype`, from `data`, which needs no alignment.
// InvalidArgument: elements that are not whole blocks, or a `data` of another size than they take.
// Unimplemented: a type that is not computable (dtype.h).
absl::Status DecodeRows(DType dtype, std::span<const std::byte> data, std::span<float> out);

}  // namespace ferry
