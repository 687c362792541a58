#pragma once

// NEON: products of every number format that has scales and codes, once for each way to make dot products of bytes. A source that
// includes this takes ProductOf<Way>, and Way has:
//
//   AddTile<K>(tile, rows, num_rows, sums)   sums [num_rows][16] += the tile times one block of these rows of activations
//   PutInOrder(num_rows, sums)               undoes what AddTile changed in the order of sums
//
// and, for AddEachRow,
//
//   kRows   rows of activations that it takes at once
//   Row     32 codes of a row of activations, as Dots wants them
//   Dots<kFirst, kCount>(start, w, quarter, x)
//           start + the dot products of groups [kFirst, kFirst + kCount) of four columns with row x, for rows 4 * quarter to
//           4 * quarter + 3 of the tile
//
// Sums of bytes are exact in any order and the rest is fused as in kernels_portable.cc, so each output has the bits that it has
// there. A tile is read once for up to kChunkRows rows of activations, whose sums wait in scratch.

#include <arm_neon.h>

#include <cstring>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/int_simd_neon.h"
#include "kernels/cpu/product_parts.h"
#include "kernels/cpu/readers_of_grids.h"
// Behind it.
#include "kernels/cpu/readers_of_formats.h"

namespace ferry {
namespace {

constexpr int64_t kChunkRows = 256;  // rows whose sums wait in scratch: 16 KiB
constexpr int kPrefetchBytes = 2048;

// ------------------------------------------------------------- the types whose kernels the other families have by hand

// Bounds as in Format<DType::kMXFP4>::Block.
struct Mxfp4Scales {
  F32x16 d;
  Mxfp4Scales(const std::byte* entry, const std::byte*) {
    uint8x16_t exponents = vld1q_u8(reinterpret_cast<const uint8_t*>(entry));
    exponents = vmaxq_u8(vminq_u8(exponents, vdupq_n_u8(192)), vdupq_n_u8(64));
    d = AsFloats(Shift<23>(WidenBytes(vsubq_u8(exponents, vdupq_n_u8(1)))));
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = d;
  }
};
struct ByteCodes {
  static constexpr bool kSigned = true;
  static constexpr int kZero = 0;

  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    for (int i = 0; i < 4; ++i) {
      // Word j of the first half of a row, of the second, and the same of the row after it.
      const uint32x4x4_t even = vld4q_u32(WordsOf(tile + 128 * i)), odd = vld4q_u32(WordsOf(tile + 128 * i + 64));
      for (int j = 0; j < 4; ++j) {
        w[j].q[i] = vuzp1q_u32(even.val[j], odd.val[j]), w[4 + j].q[i] = vuzp2q_u32(even.val[j], odd.val[j]);
      }
    }
  }
};
template <>
struct ReadersOf<DType::kMXFP4> : Readers<TableCodes<4, kFp4Doubled, 12>, Mxfp4Scales> {};
template <>
struct ReadersOf<DType::kQ4_0> : Readers<PlainCodes<4, 8>, HalfScales> {};
template <>
struct ReadersOf<DType::kQ8_0> : Readers<ByteCodes, HalfScales> {};

// --------------------------------------------------------------------------------------------------------------- products

// A tile ready for products.
struct DecodedTile {
  I32x16 codes[kGroups];
  F32x16 scale[2], min[2];  // minima as products with the activations' offsets want them
};

template <typename K>
constexpr Activations kKindOf = kActivationsOf<typename K::F>;

// What is subtracted of each dot product in advance.
template <typename K>
inline int32_t StartOf(const int32_t* offsets, int part) {
  if constexpr (!K::Codes::kSigned && K::Codes::kZero > 0) return offsets[part] >> OffsetShift(K::Codes::kZero);
  return 0;
}

// sums [kRows][16] += one tile times the blocks `in` of kRows rows of activations.
template <typename K, typename Way, int kRows>
inline void AddRows(const DecodedTile& tile, const std::byte* const (&in)[kRows], float* sums) {
  using Form = typename K::FormOf;
  constexpr bool kWide = kKindOf<K> == Activations::kWide;
  constexpr int kPartGroups = kGroups / Form::kParts;
  float scale[kRows];
  for (int r = 0; r < kRows; ++r) scale[r] = *ScaleOf(in[r], kKindOf<K>);
  const auto add = [&](const auto& dots_of) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int r = 0; r < kRows; ++r) {
        const int32_t* const offsets = OffsetOf(in[r], kKindOf<K>);
        float* const at = sums + r * kLanes + 4 * quarter;
        float32x4_t sum = vld1q_f32(at);
        Unroll<Form::kParts>([&]<int part>() {
          const int32x4_t dots =
              dots_of.template operator()<part * kPartGroups, kPartGroups>(vdupq_n_s32(StartOf<K>(offsets, part)), quarter, r);
          sum = vfmaq_f32(sum, vcvtq_f32_s32(dots), vmulq_n_f32(tile.scale[part].q[quarter], scale[r]));
          if constexpr (Form::kMins) {
            sum = vfmaq_n_f32(sum, tile.min[part].q[quarter], static_cast<float>(offsets[part]) * scale[r]);
          }
        });
        vst1q_f32(at, sum);
      }
    }
  };
  typename Way::Row x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = typename Way::Row(CodesOf(in[r]));
  if constexpr (kWide) {
    typename Way::Row low[kRows];
    for (int r = 0; r < kRows; ++r) low[r] = typename Way::Row(CodesOf(in[r]) + kBlock);
    add([&]<int kFirst, int kCount>(int32x4_t start, int quarter, int r) {
      const int32x4_t high = Way::template Dots<kFirst, kCount>(start, tile.codes, quarter, x[r]);
      return Way::template Dots<kFirst, kCount>(vshlq_n_s32(high, 7), tile.codes, quarter, low[r]);
    });
  } else {
    add([&]<int kFirst, int kCount>(int32x4_t start, int quarter, int r) {
      return Way::template Dots<kFirst, kCount>(start, tile.codes, quarter, x[r]);
    });
  }
}

// Rows of activations of a chunk, one block of them.
struct BlockOfRows {
  const PanelProduct& p;
  int64_t first_row, at;  // the chunk's first row, and where the block begins in each row

  const std::byte* operator[](int64_t i) const { return RowAt(p, first_row + i) + at; }
};

// The rows [first, num_rows) of AddTile, sums in the order of the tile's rows.
template <typename K, typename Way>
inline void AddEachRow(const DecodedTile& tile, const BlockOfRows& rows, int64_t first, int64_t num_rows, float* sums) {
  int64_t i = first;
  for (; Way::kRows > 1 && i + Way::kRows <= num_rows; i += Way::kRows) {
    const std::byte* in[Way::kRows];
    for (int r = 0; r < Way::kRows; ++r) in[r] = rows[i + r];
    AddRows<K, Way, Way::kRows>(tile, in, sums + i * kLanes);
  }
  for (; i < num_rows; ++i) AddRows<K, Way, 1>(tile, {rows[i]}, sums + i * kLanes);
}

#if defined(__ARM_FEATURE_DOTPROD)

// SDOT, four columns of four rows of the tile with a group of activations that the instruction picks from a register: neither is
// copied. Four rows of activations share what is loaded of the tile.
struct ByElement {
  static constexpr int kRows = 4;

  struct Row {
    int8x16_t half[2];
    Row() = default;
    explicit Row(const int8_t* codes) : half{vld1q_s8(codes), vld1q_s8(codes + 16)} {}
  };

  template <int kFirst, int kCount>
  static int32x4_t Dots(int32x4_t dots, const I32x16 (&w)[kGroups], int quarter, const Row& x) {
    Unroll<kCount>([&]<int i>() {
      constexpr int kGroup = kFirst + i;
      dots = vdotq_laneq_s32(dots, vreinterpretq_s8_u32(w[kGroup].q[quarter]), x.half[kGroup / 4], kGroup % 4);
    });
    return dots;
  }
  template <typename K>
  static void AddTile(const DecodedTile& tile, const BlockOfRows& rows, int64_t num_rows, float* sums) {
    AddEachRow<K, ByElement>(tile, rows, 0, num_rows, sums);
  }
  static void PutInOrder(int64_t, float*) {}
};

#endif

template <DType kType, typename Way>
void Product(const PanelProduct& p) {
  using K = Kernel<kType>;
  using Form = typename K::FormOf;
  float* const sums = reinterpret_cast<float*>(p.scratch);  // [kChunkRows][16]
  const int64_t num_entries = p.num_blocks / K::kTilesPerScale;
  for (int64_t tile_number = 0; tile_number * kLanes < p.num_outputs; ++tile_number) {
    const std::byte* codes = p.codes + tile_number * p.num_blocks * K::kTileBytes;
    const std::byte* entries = p.scales + tile_number * num_entries * K::kEntryBytes;
    const std::byte* headers = p.row_headers + tile_number * K::kHeaderBytes;
    for (int64_t first_row = 0; first_row < p.num_rows; first_row += kChunkRows) {
      const int64_t num_rows = p.num_rows - first_row < kChunkRows ? p.num_rows - first_row : kChunkRows;
      std::memset(sums, 0, static_cast<size_t>(num_rows * kLanes) * sizeof(float));
      for (int64_t e = 0; e < num_entries; ++e) {
        const typename K::Scales scales(entries + e * K::kEntryBytes, headers);
        Unroll<K::kTilesPerScale>([&]<int t>() {
          const int64_t block = e * K::kTilesPerScale + t;
          const std::byte* stored = codes + block * K::kTileBytes;
          for (int i = 0; i < K::kTileBytes; i += 64) __builtin_prefetch(stored + kPrefetchBytes + i);
          DecodedTile tile;
          K::Codes::template Read<t>(stored, scales, tile.codes);
          scales.template At<t>(stored, tile.scale, tile.min);
          if constexpr (Form::kMins) {
            for (int part = 0; part < Form::kParts; ++part) tile.min[part] = tile.min[part] * F32x16::Broadcast(1.0f / 128);
          }
          Way::template AddTile<K>(tile, BlockOfRows{p, first_row, block * BlockBytes(kKindOf<K>)}, num_rows, sums);
        });
      }
      Way::PutInOrder(num_rows, sums);
      StoreTile(p, first_row, num_rows, tile_number, sums, kLanes);
    }
  }
}

template <typename Way>
ProductFunction ProductOf(DType type) {
  ProductFunction product = nullptr;
  WithFormat(type, [&]<DType kType>() {
    if constexpr (requires { typename ReadersOf<kType>::Codes; }) product = Product<kType, Way>;
  });
  return product;
}

}  // namespace
}  // namespace ferry
