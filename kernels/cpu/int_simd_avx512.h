#pragma once

// Sixteen 32-bit lanes, one for each row of a tile, whose bytes are four neighbouring columns: what readers_of_codes.h is written
// over. Only for *_avx512.cc.
//
// Fields of a tile (common/model/formats/format.h) are loaded in the order in which a 4 x 4 transpose of four-byte groups leaves
// the rows: lane 4l + i holds row 4i + l. Sums are put right once at the end (LaneOfRow).

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd_avx512.h"

namespace ferry {
namespace {

struct I32x16 {
  __m512i v;

  // Stored to 64 bytes, aligned.
  void Store(std::byte* p) const { _mm512_store_si512(p, v); }
  static I32x16 Load(const std::byte* p) { return {_mm512_load_si512(p)}; }
  static I32x16 Broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static I32x16 BroadcastByte(int x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }

  friend I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
  friend I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
  friend I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
  friend I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
};

// Products take weights as unsigned bytes, so signed ones are 128 too large.
constexpr int kSignedBias = 128;
constexpr int kLargestUnsigned = 0;

// kBits to the left, or to the right where negative, in each lane.
template <int kBits>
inline I32x16 Shift(I32x16 a) {
  if constexpr (kBits > 0) return {_mm512_slli_epi32(a.v, kBits)};
  if constexpr (kBits < 0) return {_mm512_srli_epi32(a.v, -kBits)};
  return a;
}
template <int kBits>
inline I32x16 ShiftRightSigned(I32x16 a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
inline I32x16 AddBytes(I32x16 a, I32x16 b) { return {_mm512_add_epi8(a.v, b.v)}; }
inline I32x16 SubBytes(I32x16 a, I32x16 b) { return {_mm512_sub_epi8(a.v, b.v)}; }
// Products of bytes, modulo 256, with a number of each lane, from -128 to 255.
inline I32x16 TimesBytes(I32x16 bytes, I32x16 number) {
  const __m512i twice = _mm512_or_si512(_mm512_and_si512(number.v, _mm512_set1_epi32(255)), _mm512_slli_epi32(number.v, 16));
  const __m512i odd = _mm512_set1_epi32(static_cast<int32_t>(0xFF00FF00));
  const __m512i low = _mm512_mullo_epi16(bytes.v, twice), high = _mm512_mullo_epi16(_mm512_and_si512(bytes.v, odd), twice);
  return {_mm512_ternarylogic_epi32(odd, high, low, 0xCA)};  // high where odd, else low
}
// a | (b & c).
inline I32x16 OrAnd(I32x16 a, I32x16 b, I32x16 c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0xF8)}; }
// Bytes of 255 where a byte of b is not zero.
inline I32x16 NonZeroBytes(I32x16 b) { return {_mm512_movm_epi8(_mm512_test_epi8_mask(b.v, b.v))}; }
// The lowest byte of each lane in all four.
inline I32x16 SpreadByte(I32x16 a) {
  return {_mm512_shuffle_epi8(a.v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12)))};
}
inline F32x16 ToFloats(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

// Adds kNumber to the bytes of four registers, in the lanes whose top bit is set. Biased levels are unsigned: no byte
// carries.
template <int kNumber>
inline void AddWhere(I32x16 top_bit, I32x16* w) {
  const __mmask16 here = _mm512_cmplt_epi32_mask(top_bit.v, _mm512_setzero_si512());
  for (int g = 0; g < 4; ++g) w[g].v = _mm512_mask_add_epi32(w[g].v, here, w[g].v, _mm512_set1_epi8(kNumber));
}

// A table of bytes, 16, 32 or 64 of them, by the lowest four, five or six bits of each byte of `codes`, whatever lies above.
template <int kEntries>
struct ByteTable {
  __m512i v;
  explicit ByteTable(const int8_t* table) {
    if constexpr (kEntries == 16) v = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    if constexpr (kEntries == 32) v = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
    if constexpr (kEntries == 64) v = _mm512_loadu_si512(table);
  }
  I32x16 operator[](I32x16 codes) const { return {_mm512_permutexvar_epi8(codes.v, v)}; }
};

// ------------------------------------------------------------------------------------------------------------- fields

inline __m512i RowOfLane() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

// A field of 16 bytes, as its four words.
inline void LoadWords(const std::byte* field, I32x16 (&words)[4]) {
  const __m512i z0 = _mm512_loadu_si512(field), z1 = _mm512_loadu_si512(field + 64);
  const __m512i z2 = _mm512_loadu_si512(field + 128), z3 = _mm512_loadu_si512(field + 192);
  const __m512i a = _mm512_unpacklo_epi32(z0, z1), b = _mm512_unpackhi_epi32(z0, z1);
  const __m512i c = _mm512_unpacklo_epi32(z2, z3), d = _mm512_unpackhi_epi32(z2, z3);
  words[0].v = _mm512_unpacklo_epi64(a, c), words[1].v = _mm512_unpackhi_epi64(a, c);
  words[2].v = _mm512_unpacklo_epi64(b, d), words[3].v = _mm512_unpackhi_epi64(b, d);
}
// A field of 8 bytes, as its two words.
inline void LoadWords(const std::byte* field, I32x16 (&words)[2]) {
  const __m512i a = _mm512_loadu_si512(field), b = _mm512_loadu_si512(field + 64);
  const __m512i even = _mm512_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30);
  words[0].v = _mm512_permutex2var_epi32(a, even, b);
  words[1].v = _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
// Fields of 4, 2 and 1 bytes.
inline I32x16 LoadWord(const std::byte* field) { return {_mm512_permutexvar_epi32(RowOfLane(), _mm512_loadu_si512(field))}; }
inline __m256i LoadTransposedShorts(const std::byte* field) {
  const __m256i transposed = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm256_permutexvar_epi16(transposed, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(field)));
}
inline I32x16 LoadShort(const std::byte* field) { return {_mm512_cvtepu16_epi32(LoadTransposedShorts(field))}; }
inline F32x16 LoadHalf(const std::byte* field) { return {_mm512_cvtph_ps(LoadTransposedShorts(field))}; }
inline I32x16 LoadByte(const std::byte* field) {
  const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(field)), transposed))};
}
inline F32x16 AsFloats(I32x16 bits) { return {_mm512_castsi512_ps(bits.v)}; }
inline F32x16 HalvesToFloats(I32x16 halves) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(halves.v))}; }

}  // namespace
}  // namespace ferry
