#pragma once

// The three formats that kernels_avx512.cc and kernels_amx.cc multiply: how a tile becomes registers of bytes, and a stretch of a
// panel those of both of its row tiles. Only for sources with AVX-512 VNNI, before any other header that includes <immintrin.h>.

#include "kernels/cpu/panels_avx512.h"
// Behind it.
#include "kernels/cpu/simd_avx512.h"
// Behind that.
#include "kernels/cpu/product_parts.h"

namespace ferry {
namespace {

// Lane 4l + i holds row 4i + l. The permutation is its own inverse.
inline __m512i LaneOfRow() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

// 4 x 4 transpose of four-byte groups within each 128-bit lane.
inline void TransposeGroups(__m512i (&z)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
  const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
  z[0] = _mm512_unpacklo_epi64(a, c), z[1] = _mm512_unpackhi_epi64(a, c);
  z[2] = _mm512_unpacklo_epi64(b, d), z[3] = _mm512_unpackhi_epi64(b, d);
}

inline __m512i LoadCodes(const std::byte* codes, int i) { return _mm512_loadu_si512(codes + 64 * i); }

// How one type's tile becomes kGroups registers of unsigned bytes, code + 128, and how its scales join an activation's.
// Scales() gives 16 lanes in the transposed order; Product() the product with one activation scale.

struct Mxfp4 {
  static constexpr Activations kKind = Activations::kNarrow;
  static constexpr int kCodeBytes = 16, kScaleBytes = 1;

  static void Decode(const std::byte* codes, __m512i (&w)[kGroups]) {
    // Twice the E2M1 values, plus 128, four times over: vpermb looks at six bits of an index, so what lies above the four of
    // a code need not be masked away.
    const __m512i values = _mm512_broadcast_i32x4(
        _mm_setr_epi8(-128, -127, -126, -125, -124, -122, -120, -116, -128, 127, 126, 125, 124, 122, 120, 116));
    __m512i z[4];
    for (int i = 0; i < 4; ++i) z[i] = LoadCodes(codes, i);
    TransposeGroups(z);
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm512_permutexvar_epi8(z[i], values);
      w[4 + i] = _mm512_permutexvar_epi8(_mm512_srli_epi16(z[i], 4), values);
    }
  }
  // A scale is a power of two, 2^(s - 127), halved because the codes are doubled: exponents, kept ready to be added to the
  // exponent of the activation's scale, which costs no multiplier. |s - 128| is held to 64, and activation scales lie within
  // 2^-60 and 2^60 (QuantizedRows), so the sum stays a normal number. Weights beyond 2^-64 and 2^64 are no model's.
  static __m512i Scales(const std::byte* scales) {
    const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)), transposed);
    bytes = _mm_max_epu8(_mm_min_epu8(bytes, _mm_set1_epi8(static_cast<char>(192))), _mm_set1_epi8(64));
    return _mm512_slli_epi32(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(128)), 23);
  }
  static __m512 Product(__m512i scales, const float* activation) {
    int32_t bits;
    std::memcpy(&bits, activation, 4);
    return _mm512_castsi512_ps(_mm512_add_epi32(scales, _mm512_set1_epi32(bits)));
  }
};

// Sixteen f16 scales.
struct HalfScales {
  static constexpr int kScaleBytes = 2;

  static __m512i Scales(const std::byte* scales) {
    const __m256i transposed = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
    return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_permutexvar_epi16(transposed, halves)));
  }
  static __m512 Product(__m512i scales, const float* activation) {
    return _mm512_mul_ps(_mm512_castsi512_ps(scales), _mm512_set1_ps(*activation));
  }
};

struct Q4_0 : HalfScales {
  static constexpr Activations kKind = Activations::kNarrow;
  static constexpr int kCodeBytes = 16;

  static void Decode(const std::byte* codes, __m512i (&w)[kGroups]) {
    const __m512i nibble = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(120);  // code - 8 + 128
    __m512i z[4];
    for (int i = 0; i < 4; ++i) z[i] = LoadCodes(codes, i);
    TransposeGroups(z);
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm512_add_epi8(_mm512_and_si512(z[i], nibble), offset);
      w[4 + i] = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(z[i], 4), nibble), offset);
    }
  }
};

struct Q8_0 : HalfScales {
  static constexpr Activations kKind = Activations::kWide;
  static constexpr int kCodeBytes = 32;

  static void Decode(const std::byte* codes, __m512i (&w)[kGroups]) {
    // A register holds rows 2i and 2i + 1, 32 bytes each. Even registers give, in lanes 0 and 2, the first 16 columns of
    // rows 0 4 8 12 and 1 5 9 13 (after the transpose), odd ones of rows 2 6 10 14 and 3 7 11 15; lanes 1 and 3 the others.
    __m512i even[4], odd[4];
    for (int i = 0; i < 4; ++i) even[i] = LoadCodes(codes, 2 * i), odd[i] = LoadCodes(codes, 2 * i + 1);
    TransposeGroups(even);
    TransposeGroups(odd);
    const __m512i sign = _mm512_set1_epi8(-128);
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm512_xor_si512(_mm512_shuffle_i32x4(even[i], odd[i], 0x88), sign);
      w[4 + i] = _mm512_xor_si512(_mm512_shuffle_i32x4(even[i], odd[i], 0xDD), sign);
    }
  }
};

// Decodes a stretch of columns of a panel: codes [block][kRoom][group][64 bytes], scales [block][kRoom][16]. Only the first
// kTiles of the kRoom row tiles are written.
template <typename Type, int kTiles, int kRoom = kTiles>
void DecodePanel(const PanelProduct& p, int64_t first_block, int64_t num_blocks, std::byte* codes, std::byte* scales) {
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int tile = 0; tile < kTiles; ++tile) {
      const int64_t number = tile * p.num_blocks + first_block + block;
      __m512i w[kGroups];
      Type::Decode(p.codes + number * kLanes * Type::kCodeBytes, w);
      std::byte* to = codes + (block * kRoom + tile) * kGroups * 64;
      for (int g = 0; g < kGroups; ++g) _mm512_store_si512(to + 64 * g, w[g]);
      _mm512_store_si512(scales + (block * kRoom + tile) * 64, Type::Scales(p.scales + number * kLanes * Type::kScaleBytes));
    }
  }
}

}  // namespace
}  // namespace ferry
