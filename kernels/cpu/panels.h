#pragma once

// A matrix as the panels of 32 rows that one call of CpuKernels::panel_product multiplies.

#include <algorithm>
#include <cstdint>

#include "common/model/tiled_layout.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/integer_division.h"

namespace ferry {

// A panel of W, rows [32 * panel, ...), ready but for its activations.
inline PanelProduct PanelOf(const TiledMatrix& weight, int64_t panel, const float* bias) {
  PanelProduct p;
  const int64_t first_tile = panel * kPanelTiles;
  p.dtype = weight.layout.dtype;
  p.codes = weight.data + weight.layout.code_offset(first_tile, 0);
  p.scales = weight.data + weight.layout.scale_offset(first_tile, 0);
  if (weight.layout.row_bytes > 0) p.row_headers = weight.data + weight.layout.row_offset(first_tile);
  p.num_outputs = std::min<int64_t>(kPanelRows, weight.layout.rows - first_tile * kTileRows);
  p.num_blocks = weight.layout.col_blocks();
  p.bias = bias == nullptr ? nullptr : bias + first_tile * kTileRows;
  return p;
}
inline int64_t NumPanels(const TiledLayout& layout) { return CeilDiv(layout.rows, kPanelRows); }
// Says that panel `panel` of `weight` is what the thread multiplies after p.
inline void SetNext(PanelProduct& p, const TiledMatrix& weight, int64_t panel) {
  p.next = weight.data + weight.layout.code_offset(panel * kPanelTiles, 0);
  p.next_scales = weight.data + weight.layout.scale_offset(panel * kPanelTiles, 0);
}

}  // namespace ferry
