#pragma once

// Sixteen floats in one AVX-512 register: the vector that vector_kernels.h is written over. Only for *_avx512.cc.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace ferry {
namespace {

struct F32x16 {
  __m512 v;

  static constexpr int kRegisters = 32;  // of one F32x16 each

  static F32x16 Zero() { return {_mm512_setzero_ps()}; }
  static F32x16 Broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static F32x16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F32x16 LoadF16(const std::byte* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static F32x16 LoadBf16(const std::byte* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static F32x16 LoadI8(const std::byte* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void Store(float* p) const { _mm512_storeu_ps(p, v); }

  friend F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
};

inline F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
// The second operand where either is NaN.
inline F32x16 Max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 Min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 Abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
// Lane i is a's where bit i of `mask` is set, else b's.
inline F32x16 Select(uint32_t mask, F32x16 a, F32x16 b) { return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), b.v, a.v)}; }
// 0 where x < limit, else value (also where x is NaN).
inline F32x16 ZeroBelow(F32x16 value, F32x16 x, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), value.v)};
}
// Adds the low 9 bits of `number`'s bits, as a signed number, to the exponent of v.
inline F32x16 AddToExponent(F32x16 v, F32x16 number) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v.v), _mm512_slli_epi32(_mm512_castps_si512(number.v), 23)))};
}
inline float SumOf(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
inline float MaxOf(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
// Rounds lanes in [-127, 127] to nearest, ties to even, stores them as bytes and returns their sum.
inline int32_t StoreRounded(int8_t* p, F32x16 a) {
  const __m512i whole = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(whole));
  return _mm512_reduce_add_epi32(whole);
}

// rows[i] lane j becomes rows[j] lane i.
inline void Transpose(F32x16 (&rows)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  // b[4q + c] holds, in lane l of 128 bits, column 4l + c of rows 4q .. 4q + 3.
  for (int q = 0; q < 4; ++q) {
    const __m512d a0 = _mm512_castps_pd(a[4 * q]), a1 = _mm512_castps_pd(a[4 * q + 1]);
    const __m512d a2 = _mm512_castps_pd(a[4 * q + 2]), a3 = _mm512_castps_pd(a[4 * q + 3]);
    b[4 * q] = _mm512_castpd_ps(_mm512_unpacklo_pd(a0, a2));
    b[4 * q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a0, a2));
    b[4 * q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(a1, a3));
    b[4 * q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(a1, a3));
  }
  // Now a 4x4 transpose of 128-bit lanes for each c: output row 4l + c is lane l of b[c], b[4 + c], b[8 + c], b[12 + c].
  for (int c = 0; c < 4; ++c) {
    const __m512 low01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44), high01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xEE);
    const __m512 low23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xEE);
    rows[c].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
    rows[4 + c].v = _mm512_shuffle_f32x4(low01, low23, 0xDD);
    rows[8 + c].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
    rows[12 + c].v = _mm512_shuffle_f32x4(high01, high23, 0xDD);
  }
}

}  // namespace
}  // namespace ferry
