#pragma once

// The lanes of int_simd_avx512.h in two AVX2 registers: the first holds lanes 0 to 7, rows 0 4 8 12 1 5 9 13. Only for *_avx2.cc.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd_avx2.h"

namespace ferry {
namespace {

struct I32x16 {
  __m256i lo, hi;

  void Store(std::byte* p) const {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), lo), _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), hi);
  }
  static I32x16 Load(const std::byte* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)), _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static I32x16 Broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I32x16 BroadcastByte(int x) { return {_mm256_set1_epi8(static_cast<char>(x)), _mm256_set1_epi8(static_cast<char>(x))}; }

  friend I32x16 operator&(I32x16 a, I32x16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
  friend I32x16 operator|(I32x16 a, I32x16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
  friend I32x16 operator^(I32x16 a, I32x16 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
  friend I32x16 operator+(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
};

// Products take the sign of a weight apart, so signed ones are as they are.
constexpr int kSignedBias = 0;
// Smaller ones go unsigned, which spares their sizes and the activations' signs.
constexpr int kLargestUnsigned = 63;

template <int kBits>
inline I32x16 Shift(I32x16 a) {
  if constexpr (kBits > 0) return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
  if constexpr (kBits < 0) return {_mm256_srli_epi32(a.lo, -kBits), _mm256_srli_epi32(a.hi, -kBits)};
  return a;
}
template <int kBits>
inline I32x16 ShiftRightSigned(I32x16 a) {
  return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)};
}
inline I32x16 AddBytes(I32x16 a, I32x16 b) { return {_mm256_add_epi8(a.lo, b.lo), _mm256_add_epi8(a.hi, b.hi)}; }
inline I32x16 SubBytes(I32x16 a, I32x16 b) { return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)}; }
inline I32x16 OrAnd(I32x16 a, I32x16 b, I32x16 c) { return a | (b & c); }
inline I32x16 NonZeroBytes(I32x16 b) {
  const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi8(-1);
  return {_mm256_xor_si256(_mm256_cmpeq_epi8(b.lo, zero), ones), _mm256_xor_si256(_mm256_cmpeq_epi8(b.hi, zero), ones)};
}
inline I32x16 SpreadByte(I32x16 a) {
  const __m256i lowest = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  return {_mm256_shuffle_epi8(a.lo, lowest), _mm256_shuffle_epi8(a.hi, lowest)};
}
inline F32x16 ToFloats(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

// Adds kNumber to the bytes of four registers, in the lanes whose top bit is set.
template <int kNumber>
inline void AddWhere(I32x16 top_bit, I32x16* w) {
  const I32x16 number = ShiftRightSigned<31>(top_bit) & I32x16::BroadcastByte(kNumber);
  for (int g = 0; g < 4; ++g) w[g] = AddBytes(w[g], number);
}

// By numbers below kEntries; of 16 entries, by the lowest four bits of each byte. A shuffle of sixteen entries gives 0 where an
// index has its top bit, so each sixteen take indices from which other codes are shifted out of range.
template <int kEntries>
struct ByteTable {
  static constexpr int kParts = kEntries / 16;
  __m256i parts[kParts];
  explicit ByteTable(const int8_t* table) {
    for (int i = 0; i < kParts; ++i) {
      parts[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
    }
  }
  __m256i Find(__m256i codes) const {
    if constexpr (kParts == 1) return _mm256_shuffle_epi8(parts[0], _mm256_and_si256(codes, _mm256_set1_epi8(15)));
    const __m256i beyond = _mm256_set1_epi8(0x70);  // what is more than 15 gets the top bit
    __m256i found = _mm256_shuffle_epi8(parts[0], _mm256_adds_epu8(codes, beyond));
    for (int i = 1; i < kParts; ++i) {
      __m256i here = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * i)));
      if (i + 1 < kParts) here = _mm256_adds_epu8(here, beyond);
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(parts[i], here));
    }
    return found;
  }
  I32x16 operator[](I32x16 codes) const { return {Find(codes.lo), Find(codes.hi)}; }
};

// ------------------------------------------------------------------------------------------------------------- fields

inline __m256i Load256(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline void LoadWords(const std::byte* field, I32x16 (&words)[4]) {
  // A register holds two rows: 0 2 4 6 give the first half of the lanes, 1 3 5 7 the second.
  __m256i out[2][4];
  for (int half = 0; half < 2; ++half) {
    const std::byte* const from = field + 32 * half;
    const __m256i y0 = Load256(from), y1 = Load256(from + 64), y2 = Load256(from + 128), y3 = Load256(from + 192);
    const __m256i a = _mm256_unpacklo_epi32(y0, y1), b = _mm256_unpackhi_epi32(y0, y1);
    const __m256i c = _mm256_unpacklo_epi32(y2, y3), d = _mm256_unpackhi_epi32(y2, y3);
    out[half][0] = _mm256_unpacklo_epi64(a, c), out[half][1] = _mm256_unpackhi_epi64(a, c);
    out[half][2] = _mm256_unpacklo_epi64(b, d), out[half][3] = _mm256_unpackhi_epi64(b, d);
  }
  for (int i = 0; i < 4; ++i) words[i] = {out[0][i], out[1][i]};
}
inline void LoadWords(const std::byte* field, I32x16 (&words)[2]) {
  // Register i holds rows 4i to 4i + 3, two words each; the words of a pair of rows lie in one 128-bit lane.
  const __m256i y0 = Load256(field), y1 = Load256(field + 32), y2 = Load256(field + 64), y3 = Load256(field + 96);
  // Lane 0: rows 0 4 | 0 4 by word, that is w0(0) w0(4) w1(0) w1(4), and for rows 1 5; lane 1: rows 2 6 and 3 7.
  const __m256i a = _mm256_unpacklo_epi32(y0, y1), b = _mm256_unpackhi_epi32(y0, y1);
  const __m256i c = _mm256_unpacklo_epi32(y2, y3), d = _mm256_unpackhi_epi32(y2, y3);
  // Rows 0 4 8 12 | 2 6 10 14 of word 0 and 1, rows 1 5 9 13 | 3 7 11 15.
  const __m256i e0 = _mm256_unpacklo_epi64(a, c), e1 = _mm256_unpackhi_epi64(a, c);
  const __m256i o0 = _mm256_unpacklo_epi64(b, d), o1 = _mm256_unpackhi_epi64(b, d);
  words[0] = {_mm256_permute2x128_si256(e0, o0, 0x20), _mm256_permute2x128_si256(e0, o0, 0x31)};
  words[1] = {_mm256_permute2x128_si256(e1, o1, 0x20), _mm256_permute2x128_si256(e1, o1, 0x31)};
}
inline I32x16 LoadWord(const std::byte* field) {
  // Rows 0 to 15 in four quarters: a transpose of 4 x 4 words.
  const __m128i q0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(field));
  const __m128i q1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(field + 16));
  const __m128i q2 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(field + 32));
  const __m128i q3 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(field + 48));
  const __m128i a = _mm_unpacklo_epi32(q0, q1), b = _mm_unpackhi_epi32(q0, q1);
  const __m128i c = _mm_unpacklo_epi32(q2, q3), d = _mm_unpackhi_epi32(q2, q3);
  return {_mm256_set_m128i(_mm_unpackhi_epi64(a, c), _mm_unpacklo_epi64(a, c)),
          _mm256_set_m128i(_mm_unpackhi_epi64(b, d), _mm_unpacklo_epi64(b, d))};
}
// The sixteen shorts in transposed order, eight a register.
inline void LoadTransposedShorts(const std::byte* field, __m128i (&shorts)[2]) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(field));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(field + 16));
  const __m128i even = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i odd = _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i low = _mm_unpacklo_epi64(_mm_shuffle_epi8(a, even), _mm_shuffle_epi8(b, even));
  const __m128i high = _mm_unpacklo_epi64(_mm_shuffle_epi8(a, odd), _mm_shuffle_epi8(b, odd));
  const __m128i low_moved = _mm_shuffle_epi8(low, transposed), high_moved = _mm_shuffle_epi8(high, transposed);
  shorts[0] = _mm_unpacklo_epi8(low_moved, high_moved), shorts[1] = _mm_unpackhi_epi8(low_moved, high_moved);
}
inline I32x16 LoadShort(const std::byte* field) {
  __m128i shorts[2];
  LoadTransposedShorts(field, shorts);
  return {_mm256_cvtepu16_epi32(shorts[0]), _mm256_cvtepu16_epi32(shorts[1])};
}
inline F32x16 LoadHalf(const std::byte* field) {
  __m128i shorts[2];
  LoadTransposedShorts(field, shorts);
  return {_mm256_cvtph_ps(shorts[0]), _mm256_cvtph_ps(shorts[1])};
}
inline I32x16 LoadByte(const std::byte* field) {
  const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(field)), transposed);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline F32x16 AsFloats(I32x16 bits) { return {_mm256_castsi256_ps(bits.lo), _mm256_castsi256_ps(bits.hi)}; }
inline F32x16 HalvesToFloats(I32x16 halves) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves.lo, halves.hi), 0xD8);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1))};
}

}  // namespace
}  // namespace ferry
