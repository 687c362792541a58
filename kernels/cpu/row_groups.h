#pragma once

// Quantised rows once more, 16 of them together, as tile products read them (PanelProduct::groups).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/integer_division.h"

namespace ferry {

// Copies `count` rows, up to 16, into one group; row_of(i) says which of `rows` is its row i. Rows that are missing are zeros,
// which cost no time: other bytes may be denormal scales.
template <typename RowOf>
void GroupRows(Activations kind, const QuantizedRows& rows, const RowOf& row_of, int64_t count, int64_t blocks,
               std::byte* group) {
  const int64_t block_bytes = RowBlockBytes(kind), scales_at = block_bytes - kLanes * 4;
  if (count < kLanes) std::fill_n(group, blocks * block_bytes, std::byte{0});
  for (int64_t i = 0; i < count; ++i) {
    const std::byte* from = rows.blocks + row_of(i) * rows.row_stride;
    std::byte* to = group;
    for (int64_t block = 0; block < blocks; ++block, from += BlockBytes(kind), to += block_bytes) {
      std::memcpy(to + i * kBlock, from, kBlock);
      if (kind == Activations::kWide) std::memcpy(to + (kLanes + i) * kBlock, from + kBlock, kBlock);
      std::memcpy(to + scales_at + i * 4, from + CodeBytes(kind), 4);
    }
  }
}

// The groups of the uses of one call.
struct UseGroups {
  std::byte* data = nullptr;        // null: no use has any
  std::vector<int64_t> first_byte;  // of each use; -1: it has none
  int64_t group_bytes = 0;

  // Those of use u from row first_row on, which is a multiple of 16; null where the use has none.
  const std::byte* Of(int64_t u, int64_t first_row) const {
    return data == nullptr || first_byte[u] < 0 ? nullptr : data + first_byte[u] + first_row / kLanes * group_bytes;
  }
};

}  // namespace ferry
