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

// Copies block number `index` of a row to its place as row `lane` of a group; of paired ones the first of a pair brings zeros for
// the second, which may not exist.
inline void PutInGroup(Activations kind, const std::byte* block, int64_t index, int64_t lane, std::byte* group) {
  if (kind == Activations::kPaired) {
    std::byte* const pair = group + index / 2 * kRowPairBytes;
    std::memcpy(pair + lane * 64 + index % 2 * kBlock, block, kBlock);
    if (index % 2 == 0) std::memset(pair + lane * 64 + kBlock, 0, kBlock);
    std::memcpy(pair + kLanes * 64 + lane * 4, block + kBlock, 4);
    return;
  }
  const int64_t block_bytes = RowBlockBytes(kind);
  std::byte* const to = group + index * block_bytes;
  std::memcpy(to + lane * kBlock, block, kBlock);
  if (kind == Activations::kWide) std::memcpy(to + (kLanes + lane) * kBlock, block + kBlock, kBlock);
  std::memcpy(to + block_bytes - kLanes * 4 + lane * 4, block + CodeBytes(kind), 4);
}

// Zeros for blocks [index, index + num_blocks) of the rows from `lane` on, which are missing and then cost no time: other bytes
// may be denormal scales.
inline void PutZerosInGroup(Activations kind, int64_t index, int64_t num_blocks, int64_t lane, std::byte* group) {
  constexpr std::byte kZeros[BlockBytes(Activations::kWide)] = {};
  for (int64_t block = index; block < index + num_blocks; ++block) {
    for (int64_t i = lane; i < kLanes; ++i) PutInGroup(kind, kZeros, block, i, group);
  }
}

// Copies `count` rows, up to 16, into one group; row_of(i) says which of `rows` is its row i.
template <typename RowOf>
void GroupRows(Activations kind, const QuantizedRows& rows, const RowOf& row_of, int64_t count, int64_t blocks,
               std::byte* group) {
  const std::byte* from[kLanes];
  for (int64_t i = 0; i < count; ++i) from[i] = rows.blocks + row_of(i) * rows.row_stride;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < count; ++i) PutInGroup(kind, from[i] + block * BlockBytes(kind), block, i, group);
  }
  PutZerosInGroup(kind, 0, blocks, count, group);
}

// The groups of the uses of one call.
struct UseGroups {
  std::byte* data = nullptr;        // null: no use has any
  std::vector<int64_t> first_byte;  // of each use; -1: it has none
  int64_t group_bytes = 0;

  bool Has(int64_t u) const { return data != nullptr && first_byte[u] >= 0; }
  // Those of use u from row first_row on, which is a multiple of 16; null where the use has none.
  std::byte* Of(int64_t u, int64_t first_row) const {
    return data == nullptr || first_byte[u] < 0 ? nullptr : data + first_byte[u] + first_row / kLanes * group_bytes;
  }
};

}  // namespace ferry
