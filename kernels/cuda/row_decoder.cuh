#pragma once

// 32 columns of one row of a matrix in the tiled layout, read from memory into registers and decoded (row_formats.cuh).

#include "kernels/cuda/row_formats_grids.cuh"

namespace ferry::cuda {

// Where the rows of one row tile lie.
struct RowTile {
  const std::byte* codes = nullptr;    // of its first tile
  const std::byte* scales = nullptr;   // likewise
  const std::byte* headers = nullptr;  // of its 16 rows; null for types without
};
template <DType kType>
__device__ inline RowTile RowTileOf(const std::byte* codes, const std::byte* scales, const std::byte* headers, int64_t row_tile,
                                    int64_t col_blocks) {
  using F = Format<kType>;
  return {codes + row_tile * col_blocks * 16 * F::kCodeBytes,
          scales + row_tile * (col_blocks / F::kTilesPerScale) * 16 * F::kScaleBytes,
          F::kRowBytes > 0 ? headers + row_tile * 16 * F::kRowBytes : nullptr};
}

__device__ inline uint4 LoadOnce16(const std::byte* source) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(source));
  return value;
}

__device__ inline uint32_t LoadOnce4(const std::byte* source) {
  uint32_t value;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(source));
  return value;
}

template <typename R>
concept HasGrid = requires {
  typename R::Grid;
};

template <typename R>
concept HasTransposed = HasGrid<R> && requires(uint32_t (&words)[8]) {
  R::TransposedCodes(words, LookInGrid<R>{}, words);
};

// A row's 32 columns.
template <DType kType>
struct RowDecoder {
  using F = Format<kType>;
  using R = RowFormat<kType>;
  static constexpr int kCodeWords = (F::kCodeBytes + 3) / 4;
  // A code becomes a float through the mantissa of 2^7 (codes below 128) or of 2^15.
  static constexpr bool kWide = R::kZero == 128;
  static constexpr float kBase = (kWide ? 32768.0f : 128.0f) + R::kZero;

  struct Raw {
    uint32_t codes[kCodeWords];
    uint32_t scales[R::kScaleWords > 0 ? R::kScaleWords : 1];
  };

  // The scale that a whole row has, or 0.
  __device__ static float Header(const RowTile& tile, int row) {
    if constexpr (F::kRowBytes == 4) return *reinterpret_cast<const float*>(tile.headers + 4 * row);
    if constexpr (F::kRowBytes == 2) return HalfBits(*reinterpret_cast<const uint16_t*>(tile.headers + 2 * row));
    return 0.0f;
  }
  __device__ static void LoadCodes(const RowTile& tile, int block, int row, Raw* raw) {
    LoadFields(tile.codes + static_cast<int64_t>(block) * 16 * F::kCodeBytes, row, raw->codes, typename F::CodeFields{});
  }
  __device__ static void Load(const RowTile& tile, int block, int row, Raw* raw) {
    LoadCodes(tile, block, row, raw);
    R::LoadScales(tile.scales + static_cast<int64_t>(block / F::kTilesPerScale) * 16 * F::kScaleBytes, row,
                  block % F::kTilesPerScale, raw->scales);
  }
  // The same for columns that do not exist: decodes to finite numbers.
  __device__ static void Clear(Raw* raw) {
#pragma unroll
    for (uint32_t& word : raw->codes) word = 0;
#pragma unroll
    for (uint32_t& word : raw->scales) word = 0;
  }

  // Calls store(i, a, b) with elements 2i and 2i + 1 for each i of 16. kExact: with one rounding; otherwise with another one of
  // at most 2^-9 of a code's worth, which is no more than rounding the smallest codes to BF16, and an instruction less.
  template <bool kExact, typename Store>
  __device__ static void Decode(const Raw& raw, int block, float header, const Store& store) {
    const int tile = block % F::kTilesPerScale;
    HalfScales scales;
    R::Scales(raw.scales, raw.codes, tile, header, scales);
    uint32_t codes[8];
    if constexpr (HasGrid<R>) {
      GridCodes(raw.codes, codes);
    } else {
      R::Codes(raw.codes, codes);
    }
    if constexpr (requires { R::kSigned; }) {
#pragma unroll
      for (uint32_t& word : codes) word ^= 0x80808080u;
    }
    float offsets[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) offsets[half] = fmaf(-kBase, scales.scale[half], -scales.minimum[half]);
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      float values[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // Byte k of the codes as bits 8 to 15, or 16 to 23.
        const float code = __uint_as_float(kWide ? __byte_perm(codes[g], 0x47000000u, 0x7404u | k << 4)
                                                 : __byte_perm(codes[g], 0x43000000u, 0x7044u | k << 8));
        values[k] = Value<kExact>(code, scales.scale[g / 4], scales.minimum[g / 4], offsets[g / 4]);
      }
      store(2 * g, values[0], values[1]);
      store(2 * g + 1, values[2], values[3]);
    }
  }
  template <typename Act>
  __device__ static void Decode(const Raw& raw, int block, float header, uint32_t (&out)[16]) {
    Decode<false>(raw, block, header, [&](int i, float a, float b) { out[i] = PackPair<Act>(a, b); });
  }

 private:
  __device__ static void GridCodes(const uint32_t* raw, uint32_t (&codes)[8]) {
    if constexpr (HasTransposed<R>) {
      R::TransposedCodes(raw, LookInGrid<R>{}, codes);
      Transpose(codes);
      Transpose(codes + 4);
    } else {
      R::Codes(raw, LookInGrid<R>{}, codes);
    }
  }
  template <bool kExact>
  __device__ static float Value(float code, float scale, float minimum, float offset) {
    if constexpr (requires { R::LevelOf(code); }) {
      return fmaf(R::LevelOf(code - 128.0f), scale, -minimum);
    } else if constexpr (kExact) {
      return fmaf(code - kBase, scale, -minimum);
    } else {
      return fmaf(code, scale, offset);
    }
  }
  template <int... kBytes>
  __device__ static void LoadFields(const std::byte* entry, int row, uint32_t* words, Fields<kBytes...>) {
    int word = 0, start = 0;
    (LoadField<kBytes>(entry + 16 * start, row, words, word, start), ...);
  }
  template <int kBytes>
  __device__ static void LoadField(const std::byte* field, int row, uint32_t* words, int& word, int& start) {
    const std::byte* const at = field + row * kBytes;
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int v = 0; v < kBytes / 16; ++v) {
        const uint4 value = LoadOnce16(at + 16 * v);
        words[word + 4 * v] = value.x, words[word + 4 * v + 1] = value.y;
        words[word + 4 * v + 2] = value.z, words[word + 4 * v + 3] = value.w;
      }
    } else if constexpr (kBytes == 8) {
      const uint2 value = __ldg(reinterpret_cast<const uint2*>(at));
      words[word] = value.x, words[word + 1] = value.y;
    } else if constexpr (kBytes == 4) {
      words[word] = __ldg(reinterpret_cast<const uint32_t*>(at));
    } else if constexpr (kBytes == 2) {
      words[word] = __ldg(reinterpret_cast<const uint16_t*>(at));
    } else {
      static_assert(kBytes == 1);
      words[word] = __ldg(reinterpret_cast<const uint8_t*>(at));
    }
    word += kBytes < 4 ? 1 : kBytes / 4;
    start += kBytes;
  }
};

// A row's 32 columns of the types that dequant.cuh decodes, with the interface of RowDecoder.
template <DType kType, typename Act>
struct DirectRow {
  using Codes = Decoder<kType, Act>;
  using F = Format<kType>;
  struct Raw {
    uint4 codes[Codes::kVectors];
    uint32_t scale;
  };
  __device__ static float Header(const RowTile&, int) { return 0.0f; }
  __device__ static void Load(const RowTile& tile, int block, int row, Raw* raw) {
    const int64_t at = static_cast<int64_t>(block) * 16 + row;
#pragma unroll
    for (int v = 0; v < Codes::kVectors; ++v) raw->codes[v] = LoadOnce16(tile.codes + at * F::kCodeBytes + 16 * v);
    raw->scale = Codes::LoadScaleBits(tile.scales + at * F::kScaleBytes);
  }
  __device__ static void Clear(Raw* raw) {
#pragma unroll
    for (uint4& codes : raw->codes) codes = uint4{0, 0, 0, 0};
    raw->scale = 0;
  }
  __device__ static void Decode(const Raw& raw, int, float, uint32_t (&out)[16]) {
    Codes::Block(raw.codes, Codes::MakeScale(raw.scale), out);
  }
};
template <DType kType, typename Act>
struct PackedRow : RowDecoder<kType> {
  using Raw = typename RowDecoder<kType>::Raw;
  __device__ static void Decode(const Raw& raw, int block, float header, uint32_t (&out)[16]) {
    RowDecoder<kType>::template Decode<Act>(raw, block, header, out);
  }
};
// The one of both that decodes the type.
template <DType kType, typename Act>
using RowOf = std::conditional_t<kIsDirect<kType>, DirectRow<kType, Act>, PackedRow<kType, Act>>;

}  // namespace ferry::cuda
