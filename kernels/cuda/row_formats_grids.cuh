#pragma once

// The types of row_formats.cuh whose codes are places in a grid of groups of values.

#include "kernels/cuda/row_formats.cuh"

namespace ferry::cuda {

// The grids in the device's memory. An entry is a word: four numbers, or the places of eight numbers in a table of levels, as
// nibbles that prmt reads.
template <int kCount>
struct alignas(16) DeviceGrid {
  uint32_t entries[kCount];
};
template <typename Entry, size_t kCount, typename Change>
constexpr DeviceGrid<static_cast<int>(kCount)> MakeGrid(const Entry (&entries)[kCount], const Change& change) {
  DeviceGrid<static_cast<int>(kCount)> grid{};
  for (size_t i = 0; i < kCount; ++i) grid.entries[i] = change(entries[i]);
  return grid;
}
constexpr auto kAsItIs = [](uint32_t entry) { return entry; };
// A place has bit 2 free for what chooses between two tables.
constexpr uint32_t PlacesOfIq2(uint64_t entry) {
  uint32_t places = 0;
  for (int i = 0; i < 8; ++i) {
    const auto number = static_cast<int>(entry >> (8 * i) & 255);
    places |= (number == 8 ? 0u : number == 25 ? 1u : 2u) << (i % 4 * 8 + i / 4 * 4);  // numbers i and i + 4 share a byte
  }
  return places;
}
constexpr uint32_t PlacesOfIq1(uint64_t entry) {
  uint32_t places = 0;
  for (int i = 0; i < 8; ++i) places |= static_cast<uint32_t>(static_cast<int8_t>(entry >> (8 * i) & 255) + 1) << (4 * i);
  return places;
}
__device__ const auto kDeviceGridIq2Xxs = MakeGrid(kGridIq2Xxs, PlacesOfIq2);
__device__ const auto kDeviceGridIq2Xs = MakeGrid(kGridIq2Xs, PlacesOfIq2);
__device__ const auto kDeviceGridIq2S = MakeGrid(kGridIq2S, PlacesOfIq2);
__device__ const auto kDeviceGridIq3Xxs = MakeGrid(kGridIq3Xxs, kAsItIs);
__device__ const auto kDeviceGridIq3S = MakeGrid(kGridIq3S, kAsItIs);
__device__ const auto kDeviceGridIq1 = MakeGrid(kGridIq1, PlacesOfIq1);

// Finds entries of a grid in memory: entry i is 2^kStep * i bytes after its first one.
template <typename R>
struct LookInGrid {
  static constexpr int kStep = 2;
  __device__ uint32_t operator()(uint32_t offset) const {
    return *reinterpret_cast<const uint32_t*>(reinterpret_cast<const std::byte*>(&R::DeviceCopy()) + offset);
  }
  __device__ uint32_t At(uint32_t index) const { return R::DeviceCopy().entries[index]; }
};
// Four entries of IQ2, signed by the bits of `signs`, in the order kTransposed: then the signs of a word of places are bits of
// `signs` in their order, so none of them has to be moved alone.
__device__ inline void SignTransposed(uint32_t (&entries)[4], uint32_t signs, uint32_t (&out)[8]) {
  constexpr uint32_t kPositive = 0x002B1908u, kNegative = 0x00D5E7F8u;  // of 8, 25 and 43
  Transpose(entries);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t places = entries[k] | ((k < 2 ? signs << (2 - k) : signs >> (k - 2)) & 0x44444444u);
    out[k] = Permute(Held(kPositive), kNegative, places);
    out[4 + k] = Permute(Held(kPositive), kNegative, places >> 16);
  }
}
// An entry of IQ1 in two groups: eight times its numbers and one more, or one less where `down` is 1 and not 0.
__device__ inline void PutShiftedEight(uint32_t entry, uint32_t down, uint32_t* out) {
  constexpr uint32_t kUp = 0x000901F9u, kDown = 0x0007FFF7u;
  const uint32_t places = entry | (down * 0x44444444u);
  out[0] = Permute(Held(kUp), kDown, places);
  out[1] = Permute(Held(kUp), kDown, places >> 16);
}

template <>
struct RowFormat<DType::kIQ2_XXS> : SignedLevels, OneHalf {
  using Grid = std::remove_const_t<decltype(kDeviceGridIq2Xxs)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq2Xxs; }
  template <typename Look>
  __device__ static void TransposedCodes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
    uint32_t entries[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) entries[i] = look(MoveBits<8>(codes[0], 8 * i, Look::kStep));
    SignTransposed(entries, EvenSigns(BytesOfSeven(codes[1])), out);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t* codes, int, float, HalfScales& out) {
    out.Set(TimesAndAHalf(HalfBits(words[0]) * 0.25f, codes[1] >> 12));
  }
};
// d, and a nibble for each 16 columns.
struct NibbleScalesOfHalves {
  static constexpr int kScaleWords = 2;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldOfFour<2>(entry, row, tile / 4);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      out.scale[half] = TimesAndAHalf(HalfBits(words[0]) * 0.25f, MoveBits<4>(words[1], 8 * (tile % 4) + 4 * half, 16));
    }
  }
};
template <>
struct RowFormat<DType::kIQ2_XS> : SignedLevels, NibbleScalesOfHalves {
  using Grid = std::remove_const_t<decltype(kDeviceGridIq2Xs)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq2Xs; }
  template <typename Look>
  __device__ static void TransposedCodes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
    uint32_t entries[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) entries[i] = look(MoveBits<9>(codes[i / 2], 16 * (i % 2), Look::kStep));
    SignTransposed(entries, EvenSigns(__byte_perm(codes[0], codes[1], 0x7531) >> 1 & 0x7F7F7F7Fu), out);
  }
};
template <>
struct RowFormat<DType::kIQ2_S> : SignedLevels, NibbleScalesOfHalves {
  using Grid = std::remove_const_t<decltype(kDeviceGridIq2S)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq2S; }
  template <typename Look>
  __device__ static void TransposedCodes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
    uint32_t entries[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      entries[i] = look(MoveBits<8>(codes[0], 8 * i, Look::kStep) | MoveBits<2>(codes[2], 2 * i, Look::kStep + 8));
    }
    SignTransposed(entries, codes[1], out);
  }
};
template <>
struct RowFormat<DType::kIQ3_XXS> : Levels, OneHalf {
  using Grid = std::remove_const_t<decltype(kDeviceGridIq3Xxs)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq3Xxs; }
  template <typename Look>
  __device__ static void Codes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
    const uint32_t signs = EvenSigns(BytesOfSeven(codes[2]));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      out[i] = Signed(look(MoveBits<8>(codes[i / 4], i % 4 * 8, Look::kStep)), signs >> (4 * i));
    }
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t* codes, int, float, HalfScales& out) {
    out.Set(TimesAndAHalf(HalfBits(words[0]) * 0.5f, codes[2] >> 12));
  }
};
template <>
struct RowFormat<DType::kIQ3_S> : SignedLevels, BitsAndNibbles {
  using Grid = std::remove_const_t<decltype(kDeviceGridIq3S)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq3S; }
  template <typename Look>
  __device__ static void Codes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
    const uint32_t ninth[2] = {SpreadBits(codes[3]), SpreadBits(codes[3] >> 4)};  // bits of indices
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // Two bytes, and twice the highest bit of a byte of `ninth`, which is 0 (LookSides).
      const uint32_t index = Permute(codes[i / 4], ninth[i / 4], 0xCC40u + static_cast<uint32_t>(i % 4) * 0x11u);
      out[i] = SignedOdd(look.At(index), codes[2] >> (4 * i));
    }
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    out.Set(TimesAndAHalf(HalfBits(words[0]) * 2.0f, MoveBits<4>(words[1], 4 * tile, 16)));
  }
};
template <>
struct RowFormat<DType::kIQ1_S> : SignedLevels, OneHalf {
  using Grid = std::remove_const_t<decltype(kDeviceGridIq1)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq1; }
  template <typename Look>
  __device__ static void Codes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      PutShiftedEight(look(MoveBits<8>(codes[0], 8 * i, Look::kStep) | MoveBits<3>(codes[1], 3 * i, Look::kStep + 8)),
                      (codes[1] >> 15) & 1u, out + 2 * i);
    }
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t* codes, int, float, HalfScales& out) {
    out.Set(TimesAndAHalf(HalfBits(words[0]) * 0.25f, codes[1] << 4, 0x00070000u));
  }
};
template <>
struct RowFormat<DType::kIQ1_M> : SignedLevels {
  static constexpr int kScaleWords = 2;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldOfFour<0>(entry, row, 0);
    words[1] = FieldOfFour<0>(entry, row, 1);
  }
  using Grid = std::remove_const_t<decltype(kDeviceGridIq1)>;
  __device__ static const Grid& DeviceCopy() { return kDeviceGridIq1; }
  template <typename Look>
  __device__ static void Codes(const uint32_t* codes, const Look& look, uint32_t (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      PutShiftedEight(look(MoveBits<8>(codes[0], 8 * i, Look::kStep) | MoveBits<3>(codes[1], 4 * i, Look::kStep + 8)),
                      (codes[1] >> (4 * i + 3)) & 1u, out + 2 * i);
    }
  }
  // The top quarters of four 16-bit words are the f16, their rest holds three bits for each 16 columns.
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    const uint32_t bits = (words[0] >> 12 & 15u) | (words[0] >> 28) << 4 | (words[1] >> 12 & 15u) << 8 | (words[1] >> 28) << 12;
    const uint32_t packed = (tile < 4 ? words[0] : words[1]) >> (tile % 4 / 2 * 16 + tile % 2 * 6);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      out.scale[half] = TimesAndAHalf(HalfBits(bits) * 0.25f, packed << (16 - 3 * half), 0x00070000u);
    }
  }
};

}  // namespace ferry::cuda
