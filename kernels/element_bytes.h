#pragma once

#include <cstdint>

#include "common/model/dtype.h"

namespace ferry {

// Of a value that Ops computes with: F32, F16 or BF16.
inline int64_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

}  // namespace ferry
