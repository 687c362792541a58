#pragma once

// The values of stored weights, as floats: the meaning of each computable type's blocks in a GGUF file. The formats themselves
// say it (formats/).

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

// Decodes out.size() elements, which are whole rows of `cols`, from `data`, which needs no alignment. A row is its header, if the
// type has one, and whole blocks.
// InvalidArgument: columns that are not whole blocks, elements that are not whole rows, or a `data` of another size than they
// take. Unimplemented: a type that is not computable (dtype.h).
absl::Status DecodeRows(DType dtype, int64_t cols, std::span<const std::byte> data, std::span<float> out);

}  // namespace ferry
