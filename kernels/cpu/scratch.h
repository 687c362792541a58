#pragma once

// Memory that operations reuse from call to call: it grows and is given back with its owner.

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_kernels.h"

namespace ferry {

// A buffer on 64 bytes whose contents do not survive growing. Move-only.
class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;
  ~Scratch();

  // At least `bytes`; throws std::bad_alloc when there is no memory.
  std::byte* Get(int64_t bytes);

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Space for `rows` quantised rows of `cols` (a multiple of 32) in `scratch`. Rows start on cache lines, an odd number of
// them apart, so that rows read side by side do not fall on the same places of the first-level cache.
QuantizedRows TakeQuantizedRows(Scratch& scratch, Activations kind, int64_t rows, int64_t cols);

}  // namespace ferry
