// NEON with products of small matrices of bytes (ARMv8.6 I8MM): products of every number format with scales and codes.
//
// SMMLA multiplies two rows of eight columns by two rows of activations: 32 products an instruction, where SDOT makes 16. So rows
// of activations go in pairs, and one that is left over as in formats_dotprod.cc. Sums of a pair stay as SMMLA leaves them,
//
//   [pair of the tile's rows] [row 0 with x0, row 0 with x1, row 1 with x0, row 1 with x1]
//
// until PutInOrder. Up to 32 ZIP prepare a tile, once for all rows of a chunk. No processor with I8MM was at hand, so that
// compiled instructions are all that was compared: for MXFP4, 16 sums of a tile take 16 SMMLA of 47 instructions, where
// formats_dotprod.cc takes 32 SDOT of 64.

#include "kernels/cpu/cpu_kernels.h"

#if !defined(__ARM_FEATURE_MATMUL_INT8)  // another processor family, or a compiler without the flags

namespace ferry {
ProductFunction FormatProductI8mm(DType) { return nullptr; }
}  // namespace ferry

#else

#include "kernels/cpu/products_neon.h"

namespace ferry {
namespace {

constexpr int kTilePairs = kLanes / 2;  // pairs of a tile's rows
constexpr int kEights = kBlock / 8;     // groups of eight columns

// A tile as SMMLA reads it.
struct PairedTile {
  int8x16_t codes[kTilePairs][kEights];                  // eight columns of a row, then the same of the next
  float32x4_t scale[2][kTilePairs], min[2][kTilePairs];  // of a row twice, then of the next
};

inline void Repeat(const F32x16& of_rows, float32x4_t (&of_pairs)[kTilePairs]) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    of_pairs[2 * quarter] = vzip1q_f32(of_rows.q[quarter], of_rows.q[quarter]);
    of_pairs[2 * quarter + 1] = vzip2q_f32(of_rows.q[quarter], of_rows.q[quarter]);
  }
}

template <typename K>
inline void Pair(const DecodedTile& tile, PairedTile& paired) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    for (int i = 0; i < kEights; ++i) {
      const uint32x4_t left = tile.codes[2 * i].q[quarter], right = tile.codes[2 * i + 1].q[quarter];
      paired.codes[2 * quarter][i] = vreinterpretq_s8_u32(vzip1q_u32(left, right));
      paired.codes[2 * quarter + 1][i] = vreinterpretq_s8_u32(vzip2q_u32(left, right));
    }
  }
  for (int part = 0; part < K::FormOf::kParts; ++part) {
    Repeat(tile.scale[part], paired.scale[part]);
    if constexpr (K::FormOf::kMins) Repeat(tile.min[part], paired.min[part]);
  }
}

// The numbers of two rows of activations, in the lanes of their sums.
inline int32x4_t Lanes(int32_t first, int32_t second) { return vzip1q_s32(vdupq_n_s32(first), vdupq_n_s32(second)); }
inline float32x4_t Lanes(float first, float second) { return vzip1q_f32(vdupq_n_f32(first), vdupq_n_f32(second)); }

// One block of two rows of activations.
template <typename K>
struct PairOfRows {
  static constexpr bool kWide = kKindOf<K> == Activations::kWide;
  static constexpr int kParts = K::FormOf::kParts;
  int8x16_t high[kEights], low[kEights];
  float32x4_t scale, sums[2];  // sums of activations, times their scale and -128
  int32x4_t starts[2];

  PairOfRows(const std::byte* first, const std::byte* second) {
    const int8_t *const a = CodesOf(first), *const b = CodesOf(second);
    for (int i = 0; i < kEights; ++i) {
      high[i] = vcombine_s8(vld1_s8(a + 8 * i), vld1_s8(b + 8 * i));
      if constexpr (kWide) low[i] = vcombine_s8(vld1_s8(a + kBlock + 8 * i), vld1_s8(b + kBlock + 8 * i));
    }
    const float scales[2] = {*ScaleOf(first, kKindOf<K>), *ScaleOf(second, kKindOf<K>)};
    scale = Lanes(scales[0], scales[1]);
    const int32_t *const offsets = OffsetOf(first, kKindOf<K>), *const others = OffsetOf(second, kKindOf<K>);
    for (int part = 0; part < kParts; ++part) {
      starts[part] = Lanes(StartOf<K>(offsets, part), StartOf<K>(others, part));
      if constexpr (K::FormOf::kMins) {
        sums[part] = Lanes(static_cast<float>(offsets[part]) * scales[0], static_cast<float>(others[part]) * scales[1]);
      }
    }
  }
};

// sums [kPairs][2 * 16] += the tile times kPairs pairs of rows of activations.
template <typename K, int kPairs>
inline void AddPairs(const PairedTile& tile, const PairOfRows<K> (&x)[kPairs], float* sums) {
  using Form = typename K::FormOf;
  constexpr int kPartEights = kEights / Form::kParts;
  for (int rows = 0; rows < kTilePairs; ++rows) {
    for (int pair = 0; pair < kPairs; ++pair) {
      float* const at = sums + pair * 2 * kLanes + 4 * rows;
      float32x4_t sum = vld1q_f32(at);
      Unroll<Form::kParts>([&]<int part>() {
        int32x4_t dots = x[pair].starts[part];
        Unroll<kPartEights>([&]<int i>() {
          constexpr int kEight = part * kPartEights + i;
          dots = vmmlaq_s32(dots, tile.codes[rows][kEight], x[pair].high[kEight]);
        });
        if constexpr (PairOfRows<K>::kWide) {
          dots = vshlq_n_s32(dots, 7);
          Unroll<kEights>([&]<int i>() { dots = vmmlaq_s32(dots, tile.codes[rows][i], x[pair].low[i]); });
        }
        sum = vfmaq_f32(sum, vcvtq_f32_s32(dots), vmulq_f32(tile.scale[part][rows], x[pair].scale));
        if constexpr (Form::kMins) sum = vfmaq_f32(sum, x[pair].sums[part], tile.min[part][rows]);
      });
      vst1q_f32(at, sum);
    }
  }
}

struct InPairs {
  template <typename K>
  static void AddTile(const DecodedTile& tile, const BlockOfRows& rows, int64_t num_rows, float* sums) {
    int64_t i = 0;
    if (num_rows > 1) {
      PairedTile paired;
      Pair<K>(tile, paired);
      for (; i + 8 <= num_rows; i += 8) {
        AddPairs<K, 4>(paired,
                       {PairOfRows<K>(rows[i], rows[i + 1]), PairOfRows<K>(rows[i + 2], rows[i + 3]),
                        PairOfRows<K>(rows[i + 4], rows[i + 5]), PairOfRows<K>(rows[i + 6], rows[i + 7])},
                       sums + i * kLanes);
      }
      for (; i + 2 <= num_rows; i += 2) AddPairs<K, 1>(paired, {PairOfRows<K>(rows[i], rows[i + 1])}, sums + i * kLanes);
    }
    AddEachRow<K, ByElement>(tile, rows, i, num_rows, sums);
  }
  static void PutInOrder(int64_t num_rows, float* sums) {
    for (int64_t i = 0; i + 2 <= num_rows; i += 2) {
      float32x4_t first[4], second[4];
      for (int quarter = 0; quarter < 4; ++quarter) {
        const float32x4_t a = vld1q_f32(sums + i * kLanes + 8 * quarter), b = vld1q_f32(sums + i * kLanes + 8 * quarter + 4);
        first[quarter] = vuzp1q_f32(a, b), second[quarter] = vuzp2q_f32(a, b);
      }
      for (int quarter = 0; quarter < 4; ++quarter) {
        vst1q_f32(sums + i * kLanes + 4 * quarter, first[quarter]);
        vst1q_f32(sums + (i + 1) * kLanes + 4 * quarter, second[quarter]);
      }
    }
  }
};

}  // namespace

ProductFunction FormatProductI8mm(DType type) { return ProductOf<InPairs>(type); }

}  // namespace ferry

#endif
