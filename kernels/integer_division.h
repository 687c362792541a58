#pragma once

// Divisions of sizes that are rounded up. `a` is not negative, the divisor is positive.

#include <cstdint>

namespace ferry {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t AlignUp(int64_t a, int64_t alignment) { return CeilDiv(a, alignment) * alignment; }

}  // namespace ferry
