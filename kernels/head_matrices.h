#pragma once

// One matrix for each head, all of one shape and type.

#include <cstddef>
#include <cstdint>

#include "common/model/tiled_layout.h"

namespace ferry {

struct HeadMatrices {
  TiledLayout layout;               // of one head's
  const std::byte* data = nullptr;  // [num_heads][layout.bytes]
  int64_t num_heads = 0;

  TiledMatrix Of(int64_t head) const { return {layout, data + head * layout.bytes}; }
};

}  // namespace ferry
