#pragma once

// Rows and columns of one tile of the tiled layout (common/model/tiled_layout.h).

#include <cstdint>

namespace ferry {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileCols = 32;

}  // namespace ferry
