#pragma once

// Whole-number products of a warp: of two row tiles of weights, by a chunk of 256 columns, with a few rows of activations
// (whole_activations.cuh). products_dot.cuh says why and how they become outputs.

#include <algorithm>
#include <bit>

#include "kernels/cuda/row_decoder.cuh"
#include "kernels/cuda/whole_activations.cuh"

namespace ferry::cuda {

constexpr int kDotWarps = 4;
constexpr int kDotThreads = kDotWarps * kWarpSize;
constexpr int kChunkTiles = 8;               // tiles of 32 columns in a chunk
constexpr int kLaneTiles = kChunkTiles / 2;  // of them a lane decodes
constexpr int kDotTiles = 2;                 // row tiles of a warp
constexpr int kTensorRows = 8;

template <DType kType>
inline constexpr bool kIsDot = !kIsDirect<kType> || kType == DType::kQ4_0;
template <DType kType>
inline constexpr bool kHasMinimum = Format<kType>::kMins;
template <DType kType>
inline constexpr bool kHasWhole = requires(const int (&shift)[2], uint32_t (&words)[8]) {
  RowFormat<kType>::WholeCodes(words, shift, words);
};
// Of these types codes are the values as signed bytes, of the others unsigned, kZeroOf above the value.
template <DType kType>
inline constexpr bool kIsSigned = kHasWhole<kType> || requires {
  RowFormat<kType>::kSigned;
};
template <DType kType>
inline constexpr int kZeroOf = kIsSigned<kType> ? 0 : RowFormat<kType>::kZero;
template <DType kType>
inline constexpr bool kHasShift = IsAmong(IkTypes{}, kType) && !kIsSigned<kType>;  // HalfScales::shift, to be added to codes
template <DType kType>
inline constexpr bool kHalvesDiffer = Format<kType>::kStep == 16;

template <DType kType>
inline constexpr bool kHasPairs = requires(uint32_t (&words)[8]) {
  RowFormat<kType>::PairedCodes(words, words);
};
// Words of this order have columns of both halves, so it is for types with one scale.
template <DType kType>
inline constexpr bool kHasMixed = !kHalvesDiffer<kType> && requires(uint32_t(&words)[8]) {
  RowFormat<kType>::MixedCodes(words, words);
};
template <DType kType>
inline constexpr ColumnOrder kOrderOf = HasTransposed<RowFormat<kType>> ? ColumnOrder::kTransposed
                                        : kHasMixed<kType>              ? ColumnOrder::kNibbles
                                        : kHasPairs<kType>              ? ColumnOrder::kPairs
                                                                        : ColumnOrder::kNatural;

// sum + products of four bytes, signed or not, by four signed ones.
template <bool kSigned>
__device__ inline int Dot4(uint32_t codes, uint32_t numbers, int sum) {
  int out;
  if constexpr (kSigned) {
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(codes), "r"(numbers), "r"(sum));
  } else {
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(codes), "r"(numbers), "r"(sum));
  }
  return out;
}
// The whole sums of 16 rows of codes, 32 columns (DotHalfTile: 16), and eight rows of numbers, added to `start`: out[i] is row
// g + 8 * (i / 2) of the codes, row 2q + i % 2 of the numbers.
template <bool kSigned = false>
__device__ inline void DotTile(const uint32_t (&codes)[4], uint32_t first, uint32_t second, const int (&start)[4],
                               int (&out)[4]) {
#if __CUDA_ARCH__ >= 800
#define FERRY_DOT_TILE(type)                                                                                               \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." type                                                                        \
      ".s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, "                                             \
      "%13};"                                                                                                              \
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                                                             \
      : "r"(codes[0]), "r"(codes[1]), "r"(codes[2]), "r"(codes[3]), "r"(first), "r"(second), "r"(start[0]), "r"(start[1]), \
        "r"(start[2]), "r"(start[3]))
  if constexpr (kSigned) {
    FERRY_DOT_TILE("s8");
  } else {
    FERRY_DOT_TILE("u8");
  }
#undef FERRY_DOT_TILE
#endif
}
template <bool kSigned = false>
__device__ inline void DotHalfTile(uint32_t low_rows, uint32_t high_rows, uint32_t numbers, const int (&start)[4],
                                   int (&out)[4]) {
#if __CUDA_ARCH__ >= 800
#define FERRY_DOT_HALF_TILE(type)                                                                                  \
  asm("mma.sync.aligned.m16n8k16.row.col.s32." type ".s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};" \
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                                                     \
      : "r"(low_rows), "r"(high_rows), "r"(numbers), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]))
  if constexpr (kSigned) {
    FERRY_DOT_HALF_TILE("s8");
  } else {
    FERRY_DOT_HALF_TILE("u8");
  }
#undef FERRY_DOT_HALF_TILE
#endif
}

// Scales the whole sums of a tile and adds them to `sum`. `high` and `low` have a sum for each half of the columns, or one for
// all in their first place unless kHalvesDiffer. The codes are kZero above their value. `words`: the last four of the
// activations' block.
template <DType kType, int kZero>
__device__ inline float AddWhole(const int (&high)[2], const int (&low)[2], const HalfScales& scales, const uint4& words,
                                 float sum) {
  const auto zero = [&](int half) { return kHasShift<kType> ? scales.shift[half] - kZero : -kZero; };
  const float step = __uint_as_float(words.x);
  const int half_sum = static_cast<int>(words.z), all = static_cast<int>(words.w);
  if constexpr (!kHalvesDiffer<kType>) {
    const int dots = high[0] * 128 + low[0] + zero(0) * all;
    sum = fmaf(__fmul_rn(static_cast<float>(dots), step), scales.scale[0], sum);
    if constexpr (kHasMinimum<kType>) sum = fmaf(__uint_as_float(words.y), -scales.minimum[0], sum);
  } else {
    const int sums[2] = {all - half_sum, half_sum};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int dots = high[half] * 128 + low[half] + zero(half) * sums[half];
      sum = fmaf(__fmul_rn(static_cast<float>(dots), step), scales.scale[half], sum);
      if constexpr (kHasMinimum<kType>) sum = fmaf(__fmul_rn(static_cast<float>(sums[half]), step), -scales.minimum[half], sum);
    }
  }
  return sum;
}

// What a lane reads of one row tile in a chunk.
template <DType kType>
struct LaneCodes {
  typename RowDecoder<kType>::Raw tiles[kLaneTiles];

  __device__ void Load(const RowTile& rows, int chunk, int half, int row, int col_blocks) {
    if constexpr (Format<kType>::kTilesPerScale == kChunkTiles) {
      // All scales first: the compiler then reads words that tiles share once.
      const std::byte* const entry = rows.scales + static_cast<int64_t>(chunk) * 16 * Format<kType>::kScaleBytes;
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) RowFormat<kType>::LoadScales(entry, row, half * kLaneTiles + i, tiles[i].scales);
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) {
        RowDecoder<kType>::LoadCodes(rows, chunk * kChunkTiles + half * kLaneTiles + i, row, &tiles[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLaneTiles; ++i) {
        const int block = chunk * kChunkTiles + half * kLaneTiles + i;
        if (block < col_blocks) {
          RowDecoder<kType>::Load(rows, block, row, &tiles[i]);
        } else {
          RowDecoder<kType>::Clear(&tiles[i]);
        }
      }
    }
  }
};

// A type's grid in shared memory, where lanes that look up different entries wait less than for the first-level cache; nothing
// for other types.
template <typename R>
struct GridCopy {
  __device__ void Fill() {}
  __device__ void Codes(const uint32_t* codes, uint32_t (&out)[8]) const { R::Codes(codes, out); }
};
template <HasGrid R>
struct GridCopy<R> {
  static constexpr int kCount = sizeof(typename R::Grid) / 4;
  // Copies for neighbouring lanes: with one, 32 lanes wait for 3.5 turns of the banks on average, with 16 for two.
  static constexpr int kCopies = kCount >= 4096 ? 1 : std::min(4096 / kCount, 16);
  uint32_t copies[kCount][kCopies];

  __device__ void Fill() {
    static_assert(kCopies % 2 == 0);
    constexpr int kWords = std::min(kCopies, 4);  // of a store
    struct alignas(4 * kWords) Words {
      uint32_t words[kWords];
    };
    Words* const to = reinterpret_cast<Words*>(copies);
    for (int i = threadIdx.x; i < kCount * kCopies / kWords; i += kDotThreads) {
      Words words;
#pragma unroll
      for (uint32_t& word : words.words) word = R::DeviceCopy().entries[i / (kCopies / kWords)];
      to[i] = words;
    }
  }
  struct Look {
    static constexpr int kStep = std::bit_width(4u * kCopies) - 1;
    const std::byte* first;
    uint32_t copy;
    __device__ uint32_t operator()(uint32_t offset) const { return *reinterpret_cast<const uint32_t*>(first + (offset | copy)); }
    __device__ uint32_t At(uint32_t index) const { return *reinterpret_cast<const uint32_t*>(first + ((index << kStep) + copy)); }
  };
  __device__ void Codes(const uint32_t* codes, uint32_t (&out)[8]) const {
    const Look look = {reinterpret_cast<const std::byte*>(copies), threadIdx.x % kCopies * 4};
    if constexpr (HasTransposed<R>) {
      R::TransposedCodes(codes, look, out);
    } else {
      R::Codes(codes, look, out);
    }
  }
};

// Tile i of a lane's four, decoded: of both row tiles, in the order kOrderOf.
template <DType kType>
struct DecodedTiles {
  uint32_t codes[kDotTiles][8];
  HalfScales scales[kDotTiles];

  __device__ void Decode(const GridCopy<RowFormat<kType>>& grid, const LaneCodes<kType> (&from)[kDotTiles], int i, int half,
                         const float (&headers)[kDotTiles]) {
    const int tile = Format<kType>::kTilesPerScale == 1 ? 0 : half * kLaneTiles + i;
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
      const auto& raw = from[m].tiles[i];
      RowFormat<kType>::Scales(raw.scales, raw.codes, tile, headers[m], scales[m]);
      if constexpr (kHasWhole<kType>) {
        RowFormat<kType>::WholeCodes(raw.codes, scales[m].shift, codes[m]);
      } else if constexpr (kHasMixed<kType>) {
        RowFormat<kType>::MixedCodes(raw.codes, codes[m]);
      } else if constexpr (kHasPairs<kType>) {
        RowFormat<kType>::PairedCodes(raw.codes, codes[m]);
      } else {
        grid.Codes(raw.codes, codes[m]);
      }
    }
  }
};

// The sums of up to kRows rows: a lane has those of its own row of weights and its half of the columns.
template <DType kType, int kRows>
struct DotSums {
  using Codes = LaneCodes<kType>;
  using Last = PlainSums;
  static constexpr int kCount = kDotTiles * kRows;
  static constexpr ColumnOrder kOrder = kOrderOf<kType>;
  static constexpr bool kHoldsHalves = false;
  struct Staging {};

  // `numbers`: the first row's block of tile 0 of the chunk.
  __device__ static void Add(const GridCopy<RowFormat<kType>>& grid, const LaneCodes<kType> (&codes)[kDotTiles],
                             const float (&headers)[kDotTiles], const uint32_t* numbers, int row_words, int count, Staging&,
                             float (&sums)[kCount]) {
    const int half = threadIdx.x % kWarpSize / 16;
#pragma unroll
    for (int i = 0; i < kLaneTiles; ++i) {
      DecodedTiles<kType> tile;
      tile.Decode(grid, codes, i, half, headers);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (t >= count) break;
        const uint4* const from = reinterpret_cast<const uint4*>(numbers + t * row_words + (half * kLaneTiles + i) * kWholeWords);
        uint32_t x[16];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const uint4 words = from[v];
          x[4 * v] = words.x, x[4 * v + 1] = words.y, x[4 * v + 2] = words.z, x[4 * v + 3] = words.w;
        }
        const uint4 last = from[4];
#pragma unroll
        for (int m = 0; m < kDotTiles; ++m) {
          int high[2] = {0, 0}, low[2] = {0, 0};
#pragma unroll
          for (int g = 0; g < 8; ++g) {
            high[g / 4] = Dot4<kIsSigned<kType>>(tile.codes[m][g], x[g], high[g / 4]);
            low[g / 4] = Dot4<kIsSigned<kType>>(tile.codes[m][g], x[8 + g], low[g / 4]);
          }
          if constexpr (!kHalvesDiffer<kType>) high[0] += high[1], low[0] += low[1];
          float& sum = sums[m * kRows + t];
          sum = AddWhole<kType, kZeroOf<kType>>(high, low, tile.scales[m], last, sum);
        }
      }
    }
  }
  // Calls store(half, m, row of numbers, row of weights, sum).
  template <typename Store>
  __device__ static void ForEach(const float (&sums)[kCount], const Store& store) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
#pragma unroll
      for (int t = 0; t < kRows; ++t) store(lane / 16, m, t, lane % 16, sums[m * kRows + t]);
    }
  }
};

// Sums of kTensorRows rows, by tensor cores: lane (g, q) has rows g and g + 8 of weights, rows 2q and 2q + 1 of numbers, both
// halves.
struct TensorLaneSums {
  static constexpr int kCount = kDotTiles * 2 * 4;
  static constexpr bool kHoldsHalves = true;

  // As DotSums::ForEach.
  template <typename Store>
  __device__ static void ForEach(const float (&sums)[kCount], const Store& store) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < 4; ++j) store(h, m, 2 * q + j % 2, g + j / 2 * 8, sums[(m * 2 + h) * 4 + j]);
      }
    }
  }
  // Calls store(row of numbers, row of weights, sum in tile 0, sum in tile 1) with the sums of both halves.
  template <typename Store>
  __device__ static void ForEachWhole(const float (&sums)[kCount], const Store& store) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      store(2 * q + j % 2, g + j / 2 * 8, sums[j] + sums[4 + j], sums[8 + j] + sums[12 + j]);
    }
  }
};

template <DType kType>
inline constexpr int kScaleNumbers = (kHalvesDiffer<kType> ? 2 : 1) * (kHasMinimum<kType> || kHasShift<kType> ? 2 : 1);
// Calls f(which, scale) for the scales, then for the minimums or the bits of shifts, that the type has: kScaleNumbers.
template <DType kType, typename F>
__device__ inline void ForEachScale(HalfScales& scales, const F& f) {
  constexpr int kScales = kHalvesDiffer<kType> ? 2 : 1;
#pragma unroll
  for (int half = 0; half < kScales; ++half) {
    f(half, scales.scale[half]);
    if constexpr (kHasMinimum<kType>) f(kScales + half, scales.minimum[half]);
    if constexpr (kHasShift<kType>) {
      float bits = __int_as_float(scales.shift[half]);
      f(kScales + half, bits);
      scales.shift[half] = __float_as_int(bits);
    }
  }
}

// By tensor cores, of types whose codes a lane decodes for a whole row: they change places by way of shared memory.
template <DType kType>
struct TensorSums : TensorLaneSums {
  using Codes = LaneCodes<kType>;
  static constexpr ColumnOrder kOrder = kOrderOf<kType>;
  using Last = PlainSums;
  static constexpr int kNumbers = kScaleNumbers<kType>;

  // Of a warp: the codes of a tile of each half, [row][32 bytes] in pieces of 16, and its scales.
  struct Staging {
    uint4 codes[kDotTiles][2][16][2];
    float scales[kDotTiles][2][kNumbers][16];  // scales, then minimums or the bits of shifts
  };

  __device__ static void Add(const GridCopy<RowFormat<kType>>& grid, const LaneCodes<kType> (&codes)[kDotTiles],
                             const float (&headers)[kDotTiles], const uint32_t* numbers, int row_words, int rows,
                             Staging& staging, float (&sums)[kCount]) {
#pragma unroll
    for (int i = 0; i < kLaneTiles; ++i) {
      DecodedTiles<kType> tiles;
      tiles.Decode(grid, codes, i, threadIdx.x % kWarpSize / 16, headers);
      __syncwarp();
      Stage(tiles, staging);
      __syncwarp();
#pragma unroll
      for (int h = 0; h < 2; ++h) AddHalf(staging, h, numbers + (h * kLaneTiles + i) * kWholeWords, row_words, rows, sums);
    }
  }

 private:
  // A lane's tiles: its row of weights, its half of the columns. Pieces change places in every other group of four rows, so that
  // eight rows lie in different banks.
  __device__ static void Stage(DecodedTiles<kType>& tiles, Staging& staging) {
    const int lane = threadIdx.x % kWarpSize, row = lane % 16, half = lane / 16, swap = row / 4 % 2;
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
      const uint32_t(&c)[8] = tiles.codes[m];
      staging.codes[m][half][row][swap] = uint4{c[0], c[1], c[2], c[3]};
      staging.codes[m][half][row][1 - swap] = uint4{c[4], c[5], c[6], c[7]};
      ForEachScale<kType>(tiles.scales[m], [&](int which, float& scale) { staging.scales[m][half][which][row] = scale; });
    }
  }
  // The products of the tiles of half h with the block of each row of numbers at `numbers`.
  __device__ static void AddHalf(const Staging& staging, int h, const uint32_t* numbers, int row_words, int rows,
                                 float (&sums)[kCount]) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, q = lane % 4;
    // Lane 8j + i gives the address of row i of matrix j: of numbers the high bytes of both halves, then the low ones; of codes
    // rows 0 to 7 and 8 to 15 of the first 16 columns, then of the last.
    uint32_t x[4];
    LoadMatrix4(x, SharedAddress(numbers + min(lane % 8, rows - 1) * row_words + lane / 8 * 4));
    uint4 last[2];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      last[t] = *reinterpret_cast<const uint4*>(numbers + min(2 * q + t, rows - 1) * row_words + kStepWord);
    }
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
      uint32_t c[4];
      LoadMatrix4(c, SharedAddress(&staging.codes[m][h][lane % 16][lane / 16 ^ (lane % 16 / 4 % 2)]));
      int high[2][4] = {}, low[2][4] = {};
      constexpr int kStart[4] = {};
      if constexpr (kHalvesDiffer<kType>) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          DotHalfTile<kIsSigned<kType>>(c[2 * part], c[2 * part + 1], x[part], kStart, high[part]);
          DotHalfTile<kIsSigned<kType>>(c[2 * part], c[2 * part + 1], x[2 + part], kStart, low[part]);
        }
      } else {
        DotTile<kIsSigned<kType>>(c, x[0], x[1], kStart, high[0]);
        DotTile<kIsSigned<kType>>(c, x[2], x[3], kStart, low[0]);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        HalfScales scales;
        ForEachScale<kType>(scales, [&](int which, float& scale) { scale = staging.scales[m][h][which][g + 8 * k]; });
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const int j = 2 * k + t, highs[2] = {high[0][j], high[1][j]}, lows[2] = {low[0][j], low[1][j]};
          float& sum = sums[(m * 2 + h) * 4 + j];
          sum = AddWhole<kType, kZeroOf<kType>>(highs, lows, scales, last[t], sum);
        }
      }
    }
  }
};

}  // namespace ferry::cuda
