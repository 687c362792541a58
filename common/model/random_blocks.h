#pragma once

// Weights of any number format made of random bits, for generated models and tests.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "common/model/dtype.h"

namespace ferry {

// Fills `out`, which holds whole rows of `cols` elements of a quantised type (or whole blocks, where rows have no header), with
// random codes, and with scales that give the values a mean of about 0 and about the root mean square `rms`. `random` gives 64
// bits a call.
void FillRandomBlocks(DType dtype, int64_t cols, double rms, const std::function<uint64_t()>& random, std::span<std::byte> out);

}  // namespace ferry
