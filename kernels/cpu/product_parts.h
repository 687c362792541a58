#pragma once

// What every integer product has in common: the rows of activations, the parts of their blocks, and where a tile's sums go. A
// source of one instruction set includes its simd_*.h, then this.

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_kernels.h"

namespace ferry {
namespace {

constexpr int kGroups = 8;  // of four columns in a tile

// The blocks of one row of quantised activations.
inline const std::byte* RowAt(const PanelProduct& p, int64_t row) {
  const int64_t in_row = p.in_rows == nullptr ? row : p.in_rows[row];
  return p.in->blocks + in_row * p.in->row_stride;
}

// Parts of a block of QuantizedRows, which is aligned to 4 bytes.
inline const int8_t* CodesOf(const std::byte* block) { return reinterpret_cast<const int8_t*>(block); }
inline const float* ScaleOf(const std::byte* block, Activations kind) {
  return reinterpret_cast<const float*>(block + CodeBytes(kind));
}
inline const int32_t* OffsetOf(const std::byte* block, Activations kind) {
  return reinterpret_cast<const int32_t*>(block + CodeBytes(kind) + 4);
}

// Adds bias and poison to the sums [num_rows][row_stride] of one tile and puts them where they belong. `sums` are in order
// of output.
inline void StoreTile(const PanelProduct& p, int64_t first_row, int64_t num_rows, int64_t tile, const float* sums,
                      int64_t row_stride) {
  const int64_t first = tile * kLanes;
  const int64_t outputs = p.num_outputs - first < kLanes ? p.num_outputs - first : kLanes;
  const uint32_t present = (1u << outputs) - 1;
  F32x16 bias = F32x16::Zero();
  if (p.bias != nullptr && present == 0xFFFF) {
    bias = F32x16::Load(p.bias + first);
  } else if (p.bias != nullptr) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < outputs; ++i) lanes[i] = p.bias[first + i];
    bias = F32x16::Load(lanes);
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = first_row + i;
    const int64_t in_row = p.in_rows == nullptr ? row : p.in_rows[row];
    float* out = p.out + (p.out_rows == nullptr ? row : p.out_rows[row]) * p.out_stride + first;
    const F32x16 sum = F32x16::Load(sums + i * row_stride) + (bias + F32x16::Broadcast(p.in->poison[in_row]));
    if (present == 0xFFFF) {
      (p.accumulate ? F32x16::Load(out) + sum : sum).Store(out);
    } else {
      float lanes[kLanes];
      sum.Store(lanes);
      for (int64_t j = 0; j < outputs; ++j) out[j] = p.accumulate ? out[j] + lanes[j] : lanes[j];
    }
  }
}

}  // namespace
}  // namespace ferry
