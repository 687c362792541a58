#pragma once

// What products of tiles share: the sums of up to kPartRows rows of activations with one panel, [row][tile][16], which wait in
// scratch while columns pass, and the panel that they ask for meanwhile. Only for *_amx.cc, behind integer_formats_avx512.h.

#include <cstdint>

#include "kernels/cpu/cpu_kernels.h"

namespace ferry {
namespace {

constexpr int64_t kPartRows = 256;
constexpr int64_t kSumsBytes = kPartRows * kPanelRows * 4;

// For num_rows rows, in whole groups of 16.
inline void ClearSums(int64_t num_rows, float* sums) {
  for (int64_t i = 0; i < (num_rows + kLanes - 1) / kLanes * kLanes * kPanelTiles; ++i) {
    _mm512_store_ps(sums + i * kLanes, _mm512_setzero_ps());
  }
}

// Puts the lanes of `count` rows in order, and writes them to the product's outputs from row first_row on.
template <int kTiles>
[[gnu::always_inline]] inline void StoreGroup(const PanelProduct& p, int64_t first_row, int64_t count, __m512i order,
                                              float* sums) {
  for (int64_t i = 0; i < count * kPanelTiles; ++i) {
    float* const lanes = sums + i * kLanes;
    _mm512_store_ps(lanes, _mm512_permutexvar_ps(order, _mm512_load_ps(lanes)));
  }
  for (int tile = 0; tile < kTiles; ++tile) StoreTile(p, first_row, count, tile, sums + tile * kLanes, kPanelRows);
}

// The codes of the panel behind p, to be asked for little by little while p is multiplied, which takes `steps` for each group of
// 16 rows.
class NextPanel {
 public:
  NextPanel(const PanelProduct& p, int64_t panel_bytes, int64_t steps)
      : from_(p.next != nullptr ? p.next : p.codes + panel_bytes), left_(panel_bytes) {
    const int64_t all_steps = (p.num_rows + kLanes - 1) / kLanes * steps;
    bytes_ = (panel_bytes / 64 + all_steps - 1) / all_steps * 64;
  }
  // For the next `steps` of them.
  Ahead Ask(int64_t steps) {
    const Ahead ahead = {from_, left_ > 0 ? bytes_ : 0};
    from_ += steps * ahead.bytes, left_ -= steps * ahead.bytes;
    return ahead;
  }

 private:
  const std::byte* from_;
  int64_t left_, bytes_;
};

}  // namespace
}  // namespace ferry
