#pragma once

// Whole-number products by tensor cores of types whose codes are nibbles: lane (g, q) reads word q of the nibbles of rows g and
// g + 8, which are its part of the product's first operand once they are bytes. Codes so need no way through shared memory.
// Scales, which few instructions decode, a lane has of one row and half a chunk, as in DotSums, and hands to the others that way.

#include "kernels/cuda/whole_sums.cuh"

namespace ferry::cuda {

template <DType kType>
inline constexpr bool kHasGroups = requires(uint32_t (&words)[2]) {
  RowFormat<kType>::Groups(0u, words);
};
template <DType kType>
inline constexpr bool kHasMixedWord = !kHalvesDiffer<kType> && requires(uint32_t(&words)[2]) {
  RowFormat<kType>::MixedWord(0u, words);
};
// Nibbles alone. With words of a fifth and sixth bit four rows took 5 to 10 % longer this way (docs/measurements/kernels.md).
template <DType kType>
inline constexpr bool kHasFragments = kHasGroups<kType> || kHasMixedWord<kType>;

// Whole sums as bits of floats: tensor cores add them to those of kMagic, and a sum below 2^22 is then what the float has above
// it. Float instructions, which multiprocessors have twice as many of as of others, so join a block's two sums: the conversion of
// the whole number that AddWhole makes, with the same rounding.
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23

// What is to be taken from a block's sums, as floats: from those of high and of low bytes, kMagic included, or, where halves
// differ, from the joined sum of either half.
template <DType kType>
struct SumsOfZero {
  static constexpr int kZero = RowFormat<kType>::kZero;
  static constexpr bool kHigh = !kHalvesDiffer<kType>;
  __device__ static uint2 Words(const BlockSums& sums) {
    const auto bits = [](int number) { return __float_as_uint(static_cast<float>(number)); };
    if constexpr (kHalvesDiffer<kType>) return {bits(kZero * (sums.all - sums.last_half)), bits(kZero * sums.last_half)};
    constexpr int kStart = static_cast<int>(kMagic);
    return {bits(kStart + kZero * sums.high), bits(kStart + kZero * (sums.all - 128 * sums.high))};
  }
};

// What a lane reads of one row tile in a chunk.
template <DType kType>
struct FragmentCodes {
  static constexpr int kNibbleBytes = Format<kType>::kCodeBytes;

  uint32_t nibbles[kChunkTiles][2] = {};
  uint32_t scale_words[kLaneTiles][RowDecoder<kType>::R::kScaleWords];

  __device__ void Load(const RowTile& rows, int chunk, int half, int row, int col_blocks) {
    LoadScaleWords(rows, chunk, half, row, col_blocks);
#pragma unroll
    for (int tile = 0; tile < kChunkTiles; ++tile) LoadNibbles(rows, chunk, tile, col_blocks - chunk * kChunkTiles);
  }
  // `tiles`: of the chunk and those after it. Numbers of tiles that do not exist are zeros, so any codes will do for them.
  __device__ void LoadNibbles(const RowTile& rows, int chunk, int tile, int tiles) {
    constexpr int kTileBytes = 16 * kNibbleBytes;
    const std::byte* const at =
        rows.codes + static_cast<int64_t>(chunk) * (kChunkTiles * kTileBytes) + threadIdx.x % kWarpSize * 4;
    if (tile < tiles) {
#pragma unroll
      for (int k = 0; k < 2; ++k) nibbles[tile][k] = LoadOnce4(at + tile * kTileBytes + k * 8 * kNibbleBytes);
    }
  }
  __device__ void LoadScaleWords(const RowTile& rows, int chunk, int half, int row, int col_blocks) {
    using F = Format<kType>;
#pragma unroll
    for (int i = 0; i < kLaneTiles; ++i) {
      const int block = chunk * kChunkTiles + half * kLaneTiles + i;
      if (F::kTilesPerScale == kChunkTiles || block < col_blocks) {
        RowFormat<kType>::LoadScales(rows.scales + static_cast<int64_t>(block / F::kTilesPerScale) * 16 * F::kScaleBytes, row,
                                     block % F::kTilesPerScale, scale_words[i]);
      } else {
        for (uint32_t& word : scale_words[i]) word = 0;
      }
    }
  }
};

template <DType kType>
struct FragmentSums : TensorLaneSums {
  using Codes = FragmentCodes<kType>;
  static constexpr ColumnOrder kOrder = kHasMixedWord<kType> ? ColumnOrder::kNibblesApart : ColumnOrder::kNatural;
  static constexpr bool kFloats = !kHasShift<kType>;
  using Last = std::conditional_t<kFloats, SumsOfZero<kType>, PlainSums>;
  static constexpr int kScales = kScaleNumbers<kType>;
  static constexpr int kHalves = kHalvesDiffer<kType> ? 2 : 1;

  // Of a warp: of row g of tile 0, of tile 1, of row g + 8 of tile 0, of tile 1.
  struct Staging {
    uint4 scales[kScales][kChunkTiles][8];
  };

  // reload_scale_words(), reload(tile): load those of the next chunk.
  template <typename ReloadScaleWords, typename Reload>
  __device__ static void Add(const Codes (&codes)[kDotTiles], const float (&headers)[kDotTiles], const uint32_t* numbers,
                             int row_words, int rows, Staging& staging, float (&sums)[kCount],
                             const ReloadScaleWords& reload_scale_words, const Reload& reload) {
    __syncwarp();
    Stage(codes, headers, staging);
    reload_scale_words();
    __syncwarp();
    const Places places(numbers, row_words, rows);
    int start[4];
    MakeStart(start);
    Operands now(places, staging, 0);
#pragma unroll
    for (int tile = 0; tile < kChunkTiles; ++tile) {
      Operands next = now;
      if (tile + 1 < kChunkTiles) next = Operands(places, staging, tile + 1);
      AddTile(codes, tile, now, start, sums);
      reload(tile);
      now = next;
    }
  }

 private:
  // This lane's part of the first block of the rows of numbers.
  struct Places {
    uint32_t matrices;
    const uint32_t* last[2];

    // Lane 8j + i gives the address of row i of matrix j: the high bytes' words 0 to 3, 4 to 7, then the low ones'.
    __device__ Places(const uint32_t* numbers, int row_words, int rows) {
      const int lane = threadIdx.x % kWarpSize, q = lane % 4;
      matrices = SharedAddress(numbers + min(lane % 8, rows - 1) * row_words + lane / 8 * 4);
#pragma unroll
      for (int t = 0; t < 2; ++t) last[t] = numbers + min(2 * q + t, rows - 1) * row_words + kStepWord;
    }
  };
  // What a tile's products need beside codes. Those of the next tile are on their way while one is multiplied.
  struct Operands {
    uint32_t x[4];
    uint4 words[2];
    uint32_t scales[kScales][2][kDotTiles];  // [scale][row g, g + 8][tile]

    __device__ Operands(const Places& places, const Staging& staging, int tile) {
      LoadMatrix4(x, places.matrices + tile * kWholeWords * 4);
#pragma unroll
      for (int t = 0; t < 2; ++t) words[t] = *reinterpret_cast<const uint4*>(places.last[t] + tile * kWholeWords);
#pragma unroll
      for (int n = 0; n < kScales; ++n) {
        const uint4 four = staging.scales[n][tile][threadIdx.x % kWarpSize / 4];
        scales[n][0][0] = four.x, scales[n][0][1] = four.y, scales[n][1][0] = four.z, scales[n][1][1] = four.w;
      }
    }
  };

  // kMagic's bits in four registers. Products read their first sums from four neighbours, which the compiler would fill anew for
  // each of them if it knew that they are the same (Held).
  __device__ static void MakeStart(int (&start)[4]) {
    constexpr int kBits = kFloats ? 0x4B400000 : 0;
    const auto y = static_cast<int>(threadIdx.y), z = static_cast<int>(threadIdx.z);  // 0
    start[0] = kBits + y, start[1] = kBits + z, start[2] = kBits + y + z, start[3] = kBits - y;
  }
  __device__ static void Stage(const Codes (&codes)[kDotTiles], const float (&headers)[kDotTiles], Staging& staging) {
    const int lane = threadIdx.x % kWarpSize, row = lane % 16, half = lane / 16;
#pragma unroll
    for (int i = 0; i < kLaneTiles; ++i) {
      const int tile = half * kLaneTiles + i;
      uint32_t values[kDotTiles][kScales];
#pragma unroll
      for (int m = 0; m < kDotTiles; ++m) {
        HalfScales scales;
        RowFormat<kType>::Scales(codes[m].scale_words[i], nullptr, Format<kType>::kTilesPerScale == 1 ? 0 : tile, headers[m],
                                 scales);
        ForEachScale<kType>(scales, [&](int which, float& scale) { values[m][which] = __float_as_uint(scale); });
      }
#pragma unroll
      for (int n = 0; n < kScales; ++n) {
        reinterpret_cast<uint2*>(&staging.scales[n][tile][row % 8])[row / 8] = uint2{values[0][n], values[1][n]};
      }
    }
  }
  // The products of a tile of the chunk with the block of each row of numbers.
  __device__ static void AddTile(const Codes (&codes)[kDotTiles], int tile, const Operands& of, const int (&start)[4],
                                 float (&sums)[kCount]) {
    const int h = tile / kLaneTiles;
    int high[kDotTiles][kHalves][4], low[kDotTiles][kHalves][4];
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) Multiply(codes[m].nibbles[tile], of, start, high[m], low[m]);
#pragma unroll
    for (int m = 0; m < kDotTiles; ++m) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        HalfScales scales;
        ForEachScale<kType>(scales, [&](int which, float& scale) { scale = __uint_as_float(of.scales[which][k][m]); });
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const int j = 2 * k + t;
          int highs[2], lows[2];
#pragma unroll
          for (int half = 0; half < kHalves; ++half) highs[half] = high[m][half][j], lows[half] = low[m][half][j];
          float& sum = sums[(m * 2 + h) * 4 + j];
          if constexpr (kFloats) {
            sum = AddFloats(highs, lows, scales, of.words[t], sum);
          } else {
            sum = AddWhole<kType, RowFormat<kType>::kZero>(highs, lows, scales, of.words[t], sum);
          }
        }
      }
    }
  }
  // As AddWhole, with the same result: each joined sum is the whole number, rounded once.
  __device__ static float AddFloats(const int (&high)[2], const int (&low)[2], const HalfScales& scales, const uint4& words,
                                    float sum) {
    const float step = __uint_as_float(words.x), zeros[2] = {__uint_as_float(words.z), __uint_as_float(words.w)};
    if constexpr (!kHalvesDiffer<kType>) {
      const float dots = fmaf(__int_as_float(high[0]) - zeros[0], 128.0f, __int_as_float(low[0]) - zeros[1]);
      sum = fmaf(__fmul_rn(dots, step), scales.scale[0], sum);
      if constexpr (kHasMinimum<kType>) sum = fmaf(__uint_as_float(words.y), -scales.minimum[0], sum);
    } else {
      // 63 * 16 * 16256 < 2^24: what is taken from it is exact, and so is what it is taken from.
      static_assert(RowFormat<kType>::kZero <= 32 && !kHasMinimum<kType>);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float all = fmaf(__int_as_float(high[half]) - kMagic, 128.0f, __int_as_float(low[half]) - kMagic);
        sum = fmaf(__fmul_rn(all - zeros[half], step), scales.scale[half], sum);
      }
    }
    return sum;
  }
  __device__ static void Multiply(const uint32_t (&nibbles)[2], const Operands& of, const int (&start)[4],
                                  int (&high)[kHalves][4], int (&low)[kHalves][4]) {
    uint32_t operands[4];  // both rows of the words that go with x[0] and x[2], then of those that go with x[1] and x[3]
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint32_t words[2];
      if constexpr (kHasMixedWord<kType>) {
        RowFormat<kType>::MixedWord(nibbles[k], words);
      } else {
        RowFormat<kType>::Groups(nibbles[k], words);
      }
      operands[k] = words[0], operands[2 + k] = words[1];
    }
    if constexpr (kHalvesDiffer<kType>) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        DotHalfTile(operands[2 * half], operands[2 * half + 1], of.x[half], start, high[half]);
        DotHalfTile(operands[2 * half], operands[2 * half + 1], of.x[2 + half], start, low[half]);
      }
    } else {
      DotTile(operands, of.x[0], of.x[1], start, high[0]);
      DotTile(operands, of.x[2], of.x[3], start, low[0]);
    }
  }
};

}  // namespace ferry::cuda
