#pragma once

// How keys and values become bytes of the KV cache and back: the definition for host backends, which CUDA mirrors.
//
// A row is the head_dim numbers of one (block, kv_head, token of the block); rows lie in that order (kernels/ops.h).
//   F32   as they are
//   F16   rounded to nearest, ties to even
//   Q8_0  for every 32 numbers: d = f16(max|x| / 127), held finite; code = x / d rounded to nearest, ties to even, and held
//         in [-127, 127] (d is rounded, so x / d may exceed 127); value = code * d. All zero: d = 0, codes 0. A NaN makes d
//         NaN, and with it all 32 values, so that it is seen and not stored as a number.
//         Divisions and products are in F32. d may differ from max|x| / 127 by 2^-11, the values by d / 2.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "kernels/ops.h"

namespace ferry {

inline constexpr int64_t kKvQuantBlock = 32;  // numbers that share a scale in Q8_0

// Number of the row of (block, head, token of the block) in its plane.
inline int64_t KvRow(const KvLayer& cache, int64_t block, int64_t kv_head, int64_t token) {
  return (block * cache.num_kv_heads + kv_head) * kKvBlockTokens + token;
}
// The row that holds position `position` of a sequence whose block table (full or ring) is `table`, not empty.
inline int64_t KvRowAt(const KvLayer& cache, const int32_t* table, int64_t table_size, int64_t kv_head, int64_t position) {
  return KvRow(cache, table[position / kKvBlockTokens % table_size], kv_head, position % kKvBlockTokens);
}
// Byte offset of Q8_0's scales in a plane: they follow the codes of all blocks.
inline int64_t KvScalesOffset(const KvLayer& cache) {
  return cache.num_blocks * cache.num_kv_heads * kKvBlockTokens * cache.head_dim;
}

// d of 32 numbers.
inline uint16_t KvQ8Scale(const float* x) {
  float largest = 0;
  for (int64_t i = 0; i < kKvQuantBlock; ++i) {
    if (std::isnan(x[i])) return 0x7E00;
    largest = std::max(largest, std::abs(x[i]));
  }
  return FloatToHalf(std::min(largest / 127.0f, 65504.0f));
}
inline int8_t KvQ8Code(float x, float d) {
  if (!(d > 0)) return 0;
  return static_cast<int8_t>(std::clamp(std::nearbyint(x / d), -127.0f, 127.0f));
}

// Writes one row of `plane`, cache.keys or cache.values, in that plane's type.
inline void StoreKvRow(const KvLayer& cache, std::byte* plane, DType dtype, int64_t row, const float* x) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(plane + row * cache.head_dim * 4, x, cache.head_dim * sizeof(float));
      return;
    case DType::kF16: {
      auto* out = reinterpret_cast<uint16_t*>(plane) + row * cache.head_dim;
      for (int64_t i = 0; i < cache.head_dim; ++i) out[i] = FloatToHalf(x[i]);
      return;
    }
    default: {  // Q8_0
      auto* codes = reinterpret_cast<int8_t*>(plane) + row * cache.head_dim;
      auto* scales = reinterpret_cast<uint16_t*>(plane + KvScalesOffset(cache)) + row * (cache.head_dim / kKvQuantBlock);
      for (int64_t first = 0; first < cache.head_dim; first += kKvQuantBlock) {
        const uint16_t scale = KvQ8Scale(x + first);
        const float d = HalfToFloat(scale);
        scales[first / kKvQuantBlock] = scale;
        for (int64_t i = first; i < first + kKvQuantBlock; ++i) codes[i] = KvQ8Code(x[i], d);
      }
    }
  }
}

// Reads one row, out [head_dim].
inline void LoadKvRow(const KvLayer& cache, const std::byte* plane, DType dtype, int64_t row, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, plane + row * cache.head_dim * 4, cache.head_dim * sizeof(float));
      return;
    case DType::kF16: {
      const auto* x = reinterpret_cast<const uint16_t*>(plane) + row * cache.head_dim;
      for (int64_t i = 0; i < cache.head_dim; ++i) out[i] = HalfToFloat(x[i]);
      return;
    }
    default: {  // Q8_0
      const auto* codes = reinterpret_cast<const int8_t*>(plane) + row * cache.head_dim;
      const auto* scales =
          reinterpret_cast<const uint16_t*>(plane + KvScalesOffset(cache)) + row * (cache.head_dim / kKvQuantBlock);
      for (int64_t i = 0; i < cache.head_dim; ++i) {
        out[i] = static_cast<float>(codes[i]) * HalfToFloat(scales[i / kKvQuantBlock]);
      }
    }
  }
}

inline void StoreKey(const KvLayer& cache, int64_t row, const float* x) { StoreKvRow(cache, cache.keys, cache.key_type, row, x); }
inline void StoreValue(const KvLayer& cache, int64_t row, const float* x) {
  StoreKvRow(cache, cache.values, cache.value_type, row, x);
}
inline void LoadKey(const KvLayer& cache, int64_t row, float* out) { LoadKvRow(cache, cache.keys, cache.key_type, row, out); }
inline void LoadValue(const KvLayer& cache, int64_t row, float* out) {
  LoadKvRow(cache, cache.values, cache.value_type, row, out);
}

}  // namespace ferry
