#pragma once

// Sixteen floats in two AVX2 registers, with the operations of simd_avx512.h. Only for *_avx2.cc.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace ferry {
namespace {

struct F32x16 {
  __m256 lo, hi;

  static constexpr int kRegisters = 8;

  static F32x16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32x16 Broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F32x16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F32x16 LoadF16(const std::byte* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static F32x16 LoadBf16(const std::byte* p) {
    const __m128i* shorts = reinterpret_cast<const __m128i*>(p);
    const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(shorts));
    const __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(shorts + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  }
  static F32x16 LoadI8(const std::byte* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  void Store(float* p) const { _mm256_storeu_ps(p, lo), _mm256_storeu_ps(p + 8, hi); }

  friend F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  friend F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  friend F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  friend F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
};

inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F32x16 Max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 Min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 Abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F32x16 Select(uint32_t mask, F32x16 a, F32x16 b) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lo = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits);
  const __m256i hi = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask >> 8)), bits);
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(_mm256_cmpeq_epi32(lo, bits))),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(_mm256_cmpeq_epi32(hi, bits)))};
}
inline F32x16 ZeroBelow(F32x16 value, F32x16 x, float limit) {
  const __m256 least = _mm256_set1_ps(limit);
  return {_mm256_and_ps(value.lo, _mm256_cmp_ps(x.lo, least, _CMP_NLT_UQ)),
          _mm256_and_ps(value.hi, _mm256_cmp_ps(x.hi, least, _CMP_NLT_UQ))};
}
inline __m256 AddToExponent(__m256 v, __m256 number) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_castps_si256(number), 23)));
}
inline F32x16 AddToExponent(F32x16 v, F32x16 number) { return {AddToExponent(v.lo, number.lo), AddToExponent(v.hi, number.hi)}; }
inline float SumOf(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float MaxOf(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline int32_t StoreRounded(int8_t* p, F32x16 a) {
  const __m256i lo = _mm256_cvtps_epi32(a.lo), hi = _mm256_cvtps_epi32(a.hi);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xD8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  const __m256i eight = _mm256_add_epi32(lo, hi);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}
// Through memory: keys are transposed once a tile, which the products with the queries outweigh.
inline void Transpose(F32x16 (&rows)[16]) {
  float in[16][16], out[16][16];
  for (int i = 0; i < 16; ++i) rows[i].Store(in[i]);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) out[j][i] = in[i][j];
  }
  for (int i = 0; i < 16; ++i) rows[i] = F32x16::Load(out[i]);
}

}  // namespace
}  // namespace ferry
