#pragma once

// A stretch of columns of a panel of two tiles, read (formats_avx512.cc), times up to six rows of activations: one loop for each
// form of readers_of_formats.h, for all of its formats. Only for *_avx512.cc.
//
//   codes    [block][tile][group][64 bytes], unsigned: the code where there are minima, else the code + 128
//   vectors  [block][tile][PanelVectors][16 floats]
//
// What a form does beside its 96 vpdpbusd for two tiles and six rows is what tells forms apart, so scales are kept in whichever
// way takes fewest instructions:
//
//   a scale for 32   convert, multiply, add. Vectors: scale, and min / 128
//   scales for 16    dot products of the first half start at kMagic and are then floats as they are: f(kMagic + dot, scale,
//                    -kMagic * scale) is dot * scale, rounded once. Vectors: scale 0, -kMagic * scale 0, scale 1
//   folded           codes hold code * number, so a block has one dot product, as above. Vectors: d, -kMagic * d, two min / 128.
//                    Without minima both signs are changed, since -4 * -32 is 128

#include "kernels/cpu/int_simd_avx512.h"
#include "kernels/cpu/panels_avx512.h"
#include "kernels/cpu/product_parts.h"
// Behind them.
#include "kernels/cpu/readers_of_formats.h"

namespace ferry {
namespace {

// 1.5 * 2^23: the float whose bits are kMagicBits + n is kMagic + n, for |n| up to 2^22. Scales have at most 21 bits, so that
// their product with it is exact.
constexpr float kMagic = 12582912;
constexpr int32_t kMagicBits = 0x4B400000;

template <typename Form>
constexpr int PanelVectors() {
  if constexpr (Form::kParts == 2) return Form::kMins ? 4 : 3;
  return Form::kMins ? 2 : 1;
}

// Codes of a tile, unsigned and Codes::kZero too large, to those of the panel.
template <typename Kernel, int kTile>
inline void StoreCodes(const typename Kernel::Scales& scales, I32x16 (&w)[kGroups], std::byte* codes) {
  using Form = typename Kernel::FormOf;
  constexpr int kZero = Kernel::Codes::kSigned ? kSignedBias : Kernel::Codes::kZero;
  const I32x16 zero = I32x16::BroadcastByte(kZero), bias = I32x16::BroadcastByte(128 - kZero);
  if constexpr (Form::kFolds) {
    Unroll<kGroups>([&]<int g>() {
      const I32x16 number = scales.template Number<kTile, g / 4>();
      if constexpr (Form::kMins) w[g] = TimesBytes(w[g], number);
      if constexpr (!Form::kMins) w[g] = SubBytes(I32x16::BroadcastByte(128), TimesBytes(SubBytes(w[g], zero), number));
    });
  } else if constexpr (!Form::kMins && kZero != 128) {
    for (I32x16& four : w) four = AddBytes(four, bias);
  }
  for (int g = 0; g < kGroups; ++g) w[g].Store(codes + g * 64);
}

// The vectors of a tile, one of [tile].
template <typename Kernel, int kTile>
inline void StoreVectors(const typename Kernel::Scales& scales, const std::byte* tile, float* vectors) {
  using Form = typename Kernel::FormOf;
  F32x16 scale[2], min[2];
  scales.template At<kTile>(tile, scale, min);
  if constexpr (Form::kFolds) scale[0] = Form::kMins ? scales.d : F32x16::Zero() - scales.d;
  scale[0].Store(vectors);
  if constexpr (Form::kParts == 2) (scale[0] * F32x16::Broadcast(-kMagic)).Store(vectors + kLanes);
  if constexpr (Form::kParts == 2 && !Form::kFolds) scale[1].Store(vectors + 2 * kLanes);
  if constexpr (Form::kMins) {
    for (int part = 0; part < Form::kParts; ++part) {
      (min[part] * F32x16::Broadcast(1.0f / 128)).Store(vectors + (PanelVectors<Form>() - Form::kParts + part) * kLanes);
    }
  }
}

// What minima / 128 are multiplied by: the offsets of a block's parts, where a scale covers 32 columns times the activations'
// scale. In memory, since a broadcast from there costs no shuffle, which the compiler does not know.
template <typename Form>
struct FactorsOfMins {
  float factors[4];
  void Set(const std::byte* block) {
    if constexpr (!Form::kMins) return;
    const int32_t* offsets = OffsetOf(block, Form::kKind);
    if constexpr (Form::kParts == 2) {
      _mm_storeu_ps(factors, _mm_cvtepi32_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(offsets))));
    } else {
      _mm_storeu_ps(factors, _mm_mul_ps(_mm_cvtepi32_ps(_mm_loadu_si32(offsets)), _mm_set1_ps(*ScaleOf(block, Form::kKind))));
    }
    asm("" : "+m"(factors));
  }
  __m512 Of(int part) const { return _mm512_set1_ps(factors[part]); }
};

// Where dot products of a block start that kMagic makes floats, in memory likewise.
template <typename Form>
struct Start {
  int32_t number;
  void Set(const std::byte* block) {
    const int32_t* offsets = OffsetOf(block, Form::kKind);
    number = kMagicBits + (Form::kFolds ? offsets[0] + offsets[1] : offsets[0]);
    asm("" : "+m"(number));
  }
};

// One block of kTokens rows of activations.
template <typename Form, int kTokens>
struct BlockOfRows {
  const std::byte* const* rows;
  int64_t at;

  const std::byte* operator[](int t) const { return rows[t] + at; }
  __m512 Scale(int t) const { return _mm512_set1_ps(*ScaleOf((*this)[t], Form::kKind)); }
};

// dots += groups [kFirst, kFirst + kCount) of two tiles times rows.
template <int kFirst, int kCount, typename Form, int kTokens>
[[gnu::always_inline]] inline void AddGroups(const std::byte* weights, const BlockOfRows<Form, kTokens>& in,
                                             __m512i (&dots)[kPanelTiles][kTokens]) {
#pragma GCC unroll 8
  for (int g = kFirst; g < kFirst + kCount; ++g) {
    const __m512i w0 = _mm512_load_si512(weights + g * 64), w1 = _mm512_load_si512(weights + (kGroups + g) * 64);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512i x = BroadcastGroup(CodesOf(in[t]) + 4 * g);
      dots[0][t] = _mm512_dpbusd_epi32(dots[0][t], w0, x), dots[1][t] = _mm512_dpbusd_epi32(dots[1][t], w1, x);
    }
  }
}

// acc [tile][kTokens][16] += one block of a form whose sums stay in registers.
template <typename Form, int kTokens>
[[gnu::always_inline]] inline void AddBlock(const std::byte* weights, const float* vectors, const BlockOfRows<Form, kTokens>& in,
                                            __m512 (&acc)[kPanelTiles][kTokens]) {
  FactorsOfMins<Form> factors[kTokens];
  Start<Form> starts[kTokens];
  __m512i dots[kPanelTiles][kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) factors[t].Set(in[t]);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    if constexpr (Form::kFolds && !Form::kMins) starts[t].Set(in[t]);
    const int32_t* start = Form::kFolds ? &starts[t].number : OffsetOf(in[t], Form::kKind);
    dots[0][t] = dots[1][t] = Form::kMins ? _mm512_set1_epi32(Form::kFolds ? kMagicBits : 0) : _mm512_set1_epi32(*start);
  }
  AddGroups<0, kGroups>(weights, in, dots);
#pragma GCC unroll 2
  for (int tile = 0; tile < kPanelTiles; ++tile) {
    const float* mine = vectors + tile * PanelVectors<Form>() * kLanes;
    const __m512 scale = _mm512_load_ps(mine);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      if constexpr (Form::kFolds) {
        __m512 joined = _mm512_fmadd_ps(_mm512_castsi512_ps(dots[tile][t]), scale, _mm512_load_ps(mine + kLanes));
        if constexpr (Form::kMins) {
          joined = _mm512_fmadd_ps(factors[t].Of(0), _mm512_load_ps(mine + 2 * kLanes), joined);
          joined = _mm512_fmadd_ps(factors[t].Of(1), _mm512_load_ps(mine + 3 * kLanes), joined);
        }
        acc[tile][t] = _mm512_fmadd_ps(joined, in.Scale(t), acc[tile][t]);
      } else {
        const __m512 product = _mm512_mul_ps(scale, in.Scale(t));
        acc[tile][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[tile][t]), product, acc[tile][t]);
        if constexpr (Form::kMins) {
          acc[tile][t] = _mm512_fmadd_ps(factors[t].Of(0), _mm512_load_ps(mine + kLanes), acc[tile][t]);
        }
      }
    }
  }
}

// sums [kTokens][32] += one block with scales for 16 columns. Dot products of both halves leave no registers for the sums.
template <typename Form, int kTokens>
[[gnu::always_inline]] inline void AddJoinedBlock(const std::byte* weights, const float* vectors,
                                                  const BlockOfRows<Form, kTokens>& in, float* sums) {
  Start<Form> starts[kTokens];
  __m512i dots[2][kPanelTiles][kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) starts[t].Set(in[t]);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    dots[0][0][t] = dots[0][1][t] = _mm512_set1_epi32(starts[t].number);
    dots[1][0][t] = dots[1][1][t] = _mm512_set1_epi32(OffsetOf(in[t], Form::kKind)[1]);
  }
  // Halves in turns: one alone has too few sums to keep the multipliers busy.
  Unroll<kGroups / 2>([&]<int g>() {
    AddGroups<g, 1>(weights, in, dots[0]);
    AddGroups<kGroups / 2 + g, 1>(weights, in, dots[1]);
  });
#pragma GCC unroll 2
  for (int tile = 0; tile < kPanelTiles; ++tile) {
    const float* mine = vectors + tile * PanelVectors<Form>() * kLanes;
    const __m512 scale = _mm512_load_ps(mine), minus = _mm512_load_ps(mine + kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      dots[0][tile][t] = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(dots[0][tile][t]), scale, minus));
    }
  }
  __m512 in_scale[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    in_scale[t] = in.Scale(t);
    asm("" : "+v"(in_scale[t]));  // else it is loaded for each tile
  }
#pragma GCC unroll 2
  for (int tile = 0; tile < kPanelTiles; ++tile) {
    const __m512 scale = _mm512_load_ps(vectors + (tile * PanelVectors<Form>() + 2) * kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      float* const sum = sums + t * kPanelRows + tile * kLanes;
      const __m512 first = _mm512_castsi512_ps(dots[0][tile][t]), second = _mm512_cvtepi32_ps(dots[1][tile][t]);
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_fmadd_ps(second, scale, first), in_scale[t], _mm512_load_ps(sum)));
    }
  }
}

inline void AskFor(Ahead ahead, int64_t block) {
  for (int64_t i = 0; i < ahead.bytes; i += 64) _mm_prefetch(ahead.from + block * ahead.bytes + i, _MM_HINT_T1);
}

// sums [kTokens][32] += panel * rows.
template <typename Form, int kTokens>
void PanelBlocks(const std::byte* codes, const std::byte* scales, int64_t num_blocks, const std::byte* const* rows, Ahead ahead,
                 float* sums) {
  constexpr int64_t kBlockBytes = BlockBytes(Form::kKind), kCodeBytes = kPanelTiles * kGroups * 64;
  const float* vectors = reinterpret_cast<const float*>(scales);
  constexpr int64_t kVectorFloats = kPanelTiles * PanelVectors<Form>() * kLanes;
  if constexpr (Form::kParts == 2 && !Form::kFolds) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      AskFor(ahead, block);
      asm("" : "+r"(sums));  // or the compiler keeps the sums in registers that the products then lack
      AddJoinedBlock<Form, kTokens>(codes + block * kCodeBytes, vectors + block * kVectorFloats, {rows, block * kBlockBytes},
                                    sums);
    }
    return;
  }
  __m512 acc[kPanelTiles][kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    acc[0][t] = _mm512_load_ps(sums + t * kPanelRows), acc[1][t] = _mm512_load_ps(sums + t * kPanelRows + kLanes);
  }
  for (int64_t block = 0; block < num_blocks; ++block) {
    AskFor(ahead, block);
    AddBlock<Form, kTokens>(codes + block * kCodeBytes, vectors + block * kVectorFloats, {rows, block * kBlockBytes}, acc);
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    _mm512_store_ps(sums + t * kPanelRows, acc[0][t]), _mm512_store_ps(sums + t * kPanelRows + kLanes, acc[1][t]);
  }
}

// Rows beyond count are any of the others again: their sums are not used.
template <typename Form>
void PanelGroup(const std::byte* codes, const std::byte* scales, int64_t num_blocks, const std::byte* const* rows, int64_t count,
                Ahead ahead, float* sums) {
  if (count == 1) return PanelBlocks<Form, 1>(codes, scales, num_blocks, rows, ahead, sums);
  if (count == 2) return PanelBlocks<Form, 2>(codes, scales, num_blocks, rows, ahead, sums);
  if (count <= 4) return PanelBlocks<Form, 4>(codes, scales, num_blocks, rows, ahead, sums);
  PanelBlocks<Form, kPanelTokens>(codes, scales, num_blocks, rows, ahead, sums);
}

}  // namespace
}  // namespace ferry
