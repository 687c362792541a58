#pragma once

// How 32 columns of one row of a matrix in the tiled layout are decoded: one specialisation of RowFormat for each type that is
// not decoded by dequant.cuh's Decoder. Those with grids are in row_formats_grids.cuh. Each has
//
//   kScaleWords                              words of scales that a row's 32 columns need
//   LoadScales(entry, row, tile, words)      reads them; `entry` is that of 16 rows, `tile` the place among those that share it
//   Codes(codes, out)                        the codes, kZero above their value, in the groups of code_forms.cuh; with kSigned
//                                            signed bytes, the values themselves; types with a Grid take what finds its
//                                            entries before `out`
//   TransposedCodes(codes, look, out)        some grids have it instead: the codes in the order kTransposed
//   PairedCodes(codes, out)                  some have: the codes in the order kPairs
//   MixedCodes(codes, out)                   some have: the codes in the order kNibbles
//   Groups(nibbles, out)                     types of nibbles have this or the next: the codes of groups i and i + 4 from word i
//   MixedWord(nibbles, out)                  the codes of a word of nibbles in the order kNibbles
//   WholeCodes(codes, shift, out)            some have: the values themselves as signed bytes, HalfScales::shift included
//   Scales(words, codes, tile, header, out)  scale and minimum of the two halves of 16 columns
//
// A value is (code - kZero) * scale - minimum, with one rounding where common/model/formats rounds twice.

#include <tuple>

#include "kernels/cuda/code_forms.cuh"
#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/weight_types.h"

namespace ferry::cuda {

struct HalfScales {
  float scale[2], minimum[2] = {0, 0};
  int shift[2] = {0, 0};  // of the types whose minimum is -shift * scale: what is added to a code

  __device__ void Set(float value) { scale[0] = scale[1] = value; }
  __device__ void SetMinimum(float value) { minimum[0] = minimum[1] = value; }
};

// Field `kStart` bytes into an entry of 16 rows, kBytes a row: word `word` of this row's part.
template <int kStart, int kBytes>
__device__ inline uint32_t FieldWord(const std::byte* entry, int row, int word = 0) {
  const std::byte* const at = entry + 16 * kStart + row * kBytes + 4 * word;
  if constexpr (kBytes == 1) return *reinterpret_cast<const uint8_t*>(at);
  if constexpr (kBytes == 2) return *reinterpret_cast<const uint16_t*>(at);
  return *reinterpret_cast<const uint32_t*>(at);
}
// The same in an array of fields of four bytes; `field` is chosen at run time.
template <int kStart>
__device__ inline uint32_t FieldOfFour(const std::byte* entry, int row, int field) {
  return *reinterpret_cast<const uint32_t*>(entry + 16 * (kStart + 4 * field) + 4 * row);
}

// The f16 of `d` times a whole number for each half: SetHalves of k_quants.h.
template <typename NumberOf>
__device__ inline void SetHalves(uint32_t d, const NumberOf& number_of, HalfScales& out) {
#pragma unroll
  for (int half = 0; half < 2; ++half) out.scale[half] = HalfBits(d) * static_cast<float>(number_of(half));
}
// The nibble of each half of 16 columns, from the word that has those of tiles 0 to 3 or 4 to 7.
__device__ inline uint32_t NibbleOfHalf(uint32_t word, int tile, int half) { return (word >> (8 * (tile % 4) + 4 * half)) & 15u; }
// The signed byte of each half, from the word that has those of two tiles.
__device__ inline int8_t SignedByteOfHalf(uint32_t word, int tile, int half) {
  return static_cast<int8_t>(ByteOf(word, tile % 2 * 2 + half));
}

// The kBits bits of `word` from bit `from` on, from bit `to` on.
template <int kBits>
__device__ inline uint32_t MoveBits(uint32_t word, int from, int to) {
  return (from < to ? word << (to - from) : word >> (from - to)) & (((1u << kBits) - 1u) << to);
}
// 128 plus the bits 16 to 22 of `bits` that `mask` has, as a number.
__device__ inline float NumberAbove128(uint32_t bits, uint32_t mask) { return __uint_as_float((bits & mask) | 0x43000000u); }
// d * (n + 1/2) for a number n in such bits. Like the next one exact, as the product of an f16 and so few bits is.
__device__ inline float TimesAndAHalf(float d, uint32_t bits, uint32_t mask = 0x000F0000u) {
  return fmaf(NumberAbove128(bits, mask), d, -127.5f * d);
}
// d * (n - 32) for a number of six bits.
__device__ inline float TimesLess32(float d, float above_128) { return fmaf(above_128, d, -160.0f * d); }

template <DType kType>
struct RowFormat;

// ------------------------------------------------------------------------------------------------------- blocks of 32

struct OneHalf {  // an f16 alone
  static constexpr int kScaleWords = 1;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int, float, HalfScales& out) {
    out.Set(HalfBits(words[0]));
  }
};
struct HalfAndMinimum {  // two f16: scale, and a number that is added
  static constexpr int kScaleWords = 2;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int, float, HalfScales& out) {
    out.Set(HalfBits(words[0]));
    out.SetMinimum(-HalfBits(words[1]));
  }
};
template <int kZeroCode>
struct NibbleCodes {
  static constexpr int kZero = kZeroCode;
  __device__ static void Groups(uint32_t nibbles, uint32_t (&out)[2]) { UnpackGroups(nibbles, out); }
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) { UnpackNibbles(codes, out); }
};
template <int kZeroCode>
struct FiveBitCodes {
  static constexpr int kZero = kZeroCode;
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    UnpackNibbles(codes, out);
    AddBits<4>(codes[4], out);
  }
};
struct SixBitCodes {
  static constexpr int kZero = 32;
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    UnpackNibbles(codes, out);
    AddPairs(codes + 4, out);
  }
};
template <int kZeroCode>
struct PairCodes {
  static constexpr int kZero = kZeroCode;
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) { UnpackPairs(codes, out); }
};
struct ThreeBitCodes {
  static constexpr int kZero = 4;
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    UnpackPairs(codes, out);
    AddBits<2>(codes[2], out);
  }
};
// Levels are 128 above their value.
struct Levels {
  static constexpr int kZero = 128;
};
// Codes are signed bytes; those that are kZero above the value are made of them where they are wanted.
struct SignedLevels : Levels {
  static constexpr bool kSigned = true;
};
// The codes of a row's nibbles, of levels that give them word by word.
template <typename Levels>
__device__ inline void MixWords(const uint32_t* codes, uint32_t (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t words[2];
    Levels::MixedWord(codes[i], words);
    out[2 * i] = words[0], out[2 * i + 1] = words[1];
  }
}
// The same in groups: of one word, and of a row.
template <typename Levels>
__device__ inline void GroupWord(uint32_t nibbles, uint32_t (&out)[2]) {
  uint32_t words[2];
  Levels::MixedWord(nibbles, words);
  out[0] = __byte_perm(words[0], words[1], 0x6420);
  out[1] = __byte_perm(words[0], words[1], 0x7531);
}
template <typename Levels>
__device__ inline void GroupWords(const uint32_t* codes, uint32_t (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t groups[2];
    GroupWord<Levels>(codes[i], groups);
    out[i] = groups[0], out[i + 4] = groups[1];
  }
}
struct Iq4Levels : Levels {
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) { GroupWords<Iq4Levels>(codes, out); }
  __device__ static void MixedWord(uint32_t nibbles, uint32_t (&out)[2]) {
    constexpr auto kNegative = MakeSide<0>(kIq4Values), kPositive = MakeSide<8>(kIq4Values);
    LookSides(kNegative, kPositive, nibbles, out);
  }
  __device__ static void MixedCodes(const uint32_t* codes, uint32_t (&out)[8]) { MixWords<Iq4Levels>(codes, out); }
};

// Twice the E2M1 values.
struct Fp4Levels {
  static constexpr int kZero = 12;
  // Of a table for either sign, which gives zero for codes of the other one (LookSides).
  __device__ static void MixedWord(uint32_t nibbles, uint32_t (&out)[2]) {
    const uint32_t flipped = nibbles ^ 0x88888888u;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      out[k] = Permute(Held(0x0F0E0D0Cu), 0x18141210u, nibbles >> (16 * k)) +
               Permute(Held(0x090A0B0Cu), 0x00040608u, flipped >> (16 * k));
    }
  }
};

template <>
struct RowFormat<DType::kQ4_0> : NibbleCodes<8>, OneHalf {};
template <>
struct RowFormat<DType::kQ4_1> : NibbleCodes<0>, HalfAndMinimum {};
template <>
struct RowFormat<DType::kQ5_0> : FiveBitCodes<16>, OneHalf {};
template <>
struct RowFormat<DType::kQ5_1> : FiveBitCodes<0>, HalfAndMinimum {};
template <>
struct RowFormat<DType::kQ6_0> : SixBitCodes, OneHalf {};
template <>
struct RowFormat<DType::kIQ4_NL> : Iq4Levels, OneHalf {};
template <>
struct RowFormat<DType::kNVFP4> : Fp4Levels {
  static constexpr int kScaleWords = 1;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
  }
  __device__ static void Groups(uint32_t nibbles, uint32_t (&out)[2]) { GroupWord<Fp4Levels>(nibbles, out); }
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) { GroupWords<Fp4Levels>(codes, out); }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int, float, HalfScales& out) {
    // HalfOfE4M3 of common/model/formats/blocks_of_32.h: exponent and mantissa as those of an f16, which is exact for subnormals
    // too. Loading refuses 0x7F (Finite).
    const uint32_t bits = __byte_perm(words[0] & 0x7F7Fu, 0, 0x4140) << 7;
    const float2 scales = __half22float2(__hmul2(*reinterpret_cast<const __half2*>(&bits), __float2half2_rn(128.0f)));
    out.scale[0] = scales.x, out.scale[1] = scales.y;
  }
};

// ----------------------------------------------------------------------------------------------------------- K quants

// d, dmin, and eight scales and minimums of six bits in twelve bytes (PackedScale, PackedMin of k_quants.h).
struct ScalesAndMinsOfSix {
  static constexpr int kScaleWords = 5;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
#pragma unroll
    for (int i = 0; i < 3; ++i) words[2 + i] = FieldOfFour<4>(entry, row, i);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    const int i = tile % 4;
    const uint32_t first = ByteOf(words[2], i), second = ByteOf(words[3], i), third = ByteOf(words[4], i);
    const uint32_t scale = tile < 4 ? first & 63u : (third & 15u) | (first >> 6) << 4;
    const uint32_t minimum = tile < 4 ? second & 63u : third >> 4 | (second >> 6) << 4;
    out.Set(HalfBits(words[0]) * static_cast<float>(scale));
    out.SetMinimum(HalfBits(words[1]) * static_cast<float>(minimum));
  }
};

template <>
struct RowFormat<DType::kQ4_K> : NibbleCodes<0>, ScalesAndMinsOfSix {};
template <>
struct RowFormat<DType::kQ5_K> : FiveBitCodes<0>, ScalesAndMinsOfSix {};
template <>
struct RowFormat<DType::kQ6_K> : SixBitCodes {
  static constexpr int kScaleWords = 2;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldOfFour<2>(entry, row, tile / 2);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    SetHalves(
        words[0], [&](int half) { return SignedByteOfHalf(words[1], tile, half); }, out);
  }
};
template <>
struct RowFormat<DType::kQ3_K> : ThreeBitCodes {
  static constexpr int kScaleWords = 3;
  // PackedSixteenth of k_quants.h: scale 2 * tile + half has its low bits in byte (2 * tile + half) % 8.
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldOfFour<2>(entry, row, tile % 4 / 2);
    words[2] = FieldOfFour<2>(entry, row, 2);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = tile % 2 * 2 + half;
      const uint32_t low = (ByteOf(words[1], at) >> (tile / 4 * 4)) & 15u, high = (ByteOf(words[2], at) >> (tile / 2 * 2)) & 3u;
      out.scale[half] = HalfBits(words[0]) * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    }
  }
};
template <>
struct RowFormat<DType::kQ2_K> : PairCodes<0> {
  static constexpr int kScaleWords = 3;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
    words[2] = FieldOfFour<4>(entry, row, tile / 2);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t both = ByteOf(words[2], tile % 2 * 2 + half);
      out.scale[half] = HalfBits(words[0]) * static_cast<float>(both & 15u);
      out.minimum[half] = HalfBits(words[1]) * static_cast<float>(both >> 4);
    }
  }
};
template <>
struct RowFormat<DType::kTQ2_0> : PairCodes<1>, OneHalf {};
template <>
struct RowFormat<DType::kIQ4_XS> : Iq4Levels {
  static constexpr int kScaleWords = 3;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
    words[2] = FieldWord<4, 4>(entry, row);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    const uint32_t low = (words[2] >> (4 * tile)) & 15u, high = (words[1] >> (2 * tile)) & 3u;
    out.Set(HalfBits(words[0]) * static_cast<float>(static_cast<int>(low | high << 4) - 32));
  }
};

// -------------------------------------------------------------------------------------------------------------- ik's

// A bit of `extra` moves a half's levels up by kShift.
template <int kShift>
__device__ inline void ShiftLevels(uint32_t extra, HalfScales& out) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool shifted = (extra >> half) & 1u;
    out.shift[half] = shifted ? kShift : 0;
    out.minimum[half] = shifted ? -kShift * out.scale[half] : 0.0f;
  }
}

struct Iq2Levels : Levels {
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    constexpr auto kTable = MakeLevels(kIq2Values);
    UnpackPairs(codes, out);
    LookBytes(kTable, out);
  }
  __device__ static void PairedCodes(const uint32_t* codes, uint32_t (&out)[8]) {
    constexpr auto kTable = MakeLevels(kIq2Values);
    LookPairs(kTable, codes, 0, out);
  }
};
struct Iq3Levels : Levels {
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    constexpr auto kTable = MakeLevels(kIq3Values);
    UnpackPairs(codes, out);
    AddBits<2>(codes[2], out);
    LookBytes(kTable, out);
  }
  __device__ static void PairedCodes(const uint32_t* codes, uint32_t (&out)[8]) {
    constexpr auto kTable = MakeLevels(kIq3Values);
    LookPairs(kTable, codes, codes[2], out);
  }
};
struct Iq5Levels : SignedLevels {
  static constexpr Cubic kCubic = {0x7ACE7ACEu, 0xAA8CAA8Cu, 0x1EA81EA8u, 0x1DFC1DFCu};
  static_assert([] {
    for (int code = 0; code < 32; ++code) {
      if (WholeLevel(kCubic, code) != kIq5Values[static_cast<size_t>(code)]) return false;
    }
    return true;
  }());
  __device__ static void WholeCodes(const uint32_t* codes, const int (&shift)[2], uint32_t (&out)[8]) {
    constexpr Cubic kOf = kCubic;
    const uint32_t zeros[2] = {kOf.ZeroOf(shift[0]), kOf.ZeroOf(shift[1])};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t above[2] = {codes[4] << (4 - i), codes[4] >> 8 << (4 - i)};
      uint32_t groups[2];
      LookCubic<0x00010001u>(kOf, codes[i], above, above, zeros, groups);
      out[i] = groups[0], out[i + 4] = groups[1];
    }
  }
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    constexpr int kNoShift[2] = {0, 0};
    WholeCodes(codes, kNoShift, out);
  }
};

// d, extra, and sixteen numbers of six bits: nibbles in eight bytes after their high pairs in four (SplitSixteenth).
template <int kShift>
struct SplitScales {
  static constexpr int kScaleWords = 4;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
    words[2] = FieldOfFour<4>(entry, row, 0);
    words[3] = FieldOfFour<4>(entry, row, 1 + tile / 4);
  }
  // The numbers of four tiles are joined at once, a byte each: the compiler does so once for the tiles that a lane decodes.
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    uint32_t high = words[2] >> (16 * (tile / 4)) & 0xFFFFu;  // a nibble for each tile, two bits for each half
    high = (high | high << 8) & 0x00FF00FFu;
    high = (high | high << 4) & 0x0F0F0F0Fu;
    const uint32_t numbers[2] = {(words[3] & 0x0F0F0F0Fu) | (high << 4 & 0x30303030u),
                                 (words[3] >> 4 & 0x0F0F0F0Fu) | (high << 2 & 0x30303030u)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float number = __uint_as_float(__byte_perm(numbers[half], 0x43000000u, 0x7044u | tile % 4 << 8));  // 128 above it
      out.scale[half] = TimesLess32(HalfBits(words[0]), number);
    }
    ShiftLevels<kShift>(words[1] >> (2 * tile), out);
  }
};

template <>
struct RowFormat<DType::kIQ2_K> : Iq2Levels {
  static constexpr int kScaleWords = 3;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
    words[2] = FieldOfFour<4>(entry, row, tile / 4);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    SetHalves(
        words[0], [&](int half) { return static_cast<int>(NibbleOfHalf(words[2], tile, half)) - 8; }, out);
    ShiftLevels<kIq2Shift>(words[1] >> (2 * tile), out);
  }
};
template <>
struct RowFormat<DType::kIQ3_K> : Iq3Levels {
  static constexpr int kScaleWords = 4;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
    words[2] = FieldWord<4, 2>(entry, row);
    words[3] = FieldOfFour<6>(entry, row, tile / 4);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    const auto number_of = [&](int half) {
      const auto size = static_cast<int>(2 * NibbleOfHalf(words[3], tile, half) + 1);
      return (words[2] >> (2 * tile + half)) & 1u ? -size : size;
    };
    SetHalves(words[0], number_of, out);
    ShiftLevels<kIq3Shift>(words[1] >> (2 * tile), out);
  }
};
template <>
struct RowFormat<DType::kIQ4_K> : Iq4Levels, SplitScales<kIq4Shift> {};
template <>
struct RowFormat<DType::kIQ5_K> : Iq5Levels, SplitScales<kIq5Shift> {};
// The levels are values of a polynomial (LevelOf). As whole numbers they are at most 0.54 away from it.
template <>
struct RowFormat<DType::kIQ6_K> : SixBitCodes {
  static constexpr int kScaleWords = 3;
  static constexpr Cubic kCubic = {0x79657965u, 0xAD4AAD4Au, 0x24132413u, 0x25FC25FCu};
  static_assert([] {
    for (int code = 0; code < 64; ++code) {
      const double off = WholeLevel(kCubic, code) - (-127.0 + code * (6.2568 + code * (-0.11218 + code * 0.0011972)));
      if (off < -0.54 || off > 0.54) return false;
    }
    return true;
  }());
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 2>(entry, row);
    words[2] = FieldOfFour<4>(entry, row, tile / 2);
  }
  __device__ static void WholeCodes(const uint32_t* codes, const int (&shift)[2], uint32_t (&out)[8]) {
    constexpr Cubic kOf = kCubic;
    const uint32_t zeros[2] = {kOf.ZeroOf(shift[0]), kOf.ZeroOf(shift[1])};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t low[2], high[2], groups[2];
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const uint32_t first = codes[4] >> (8 * odd), last = codes[5] >> (8 * odd);
        low[odd] = 2 * i < 4 ? first << (4 - 2 * i) : first >> (2 * i - 4);
        high[odd] = last << (8 - 2 * i);
      }
      LookCubic<0x00030003u>(kOf, codes[i], low, high, zeros, groups);
      out[i] = groups[0], out[i + 4] = groups[1];
    }
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float, HalfScales& out) {
    const uint32_t numbers = words[2] ^ 0x80808080u;  // 128 above them
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t at = tile % 2 * 2 + half;
      const float number = __uint_as_float(__byte_perm(numbers, 0x47000000u, 0x7404u | at << 4));  // 2^15 above that
      out.scale[half] = fmaf(number, HalfBits(words[0]), -32896.0f * HalfBits(words[0]));          // exact, as the product is
    }
    ShiftLevels<kIq6Shift>(words[1] >> (2 * tile), out);
  }
  __device__ static float LevelOf(float code) {
    return fmaf(code, fmaf(code, fmaf(code, 0.0011972f, -0.11218f), 6.2568f), -127.0f);
  }
};

// One scale for the row; for each 32 columns a byte, seven bits of scale and in the lowest one the levels' shift.
template <int kShift>
__device__ inline void SetByteScale(uint32_t byte, float header, HalfScales& out) {
  out.Set(header * (__uint_as_float((byte & 254u) | 0x4B000000u) - (8388608.0f + 127.0f)));  // the whole number as a mantissa
  ShiftLevels<kShift>((byte & 1u) * 3u, out);
}
template <int kShift>
struct ByteScalesOfRow {
  static constexpr int kScaleWords = 1;
  __device__ static void LoadScales(const std::byte* entry, int row, int tile, uint32_t* words) {
    words[0] = FieldOfFour<0>(entry, row, tile / 4);
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float header, HalfScales& out) {
    SetByteScale<kShift>(ByteOf(words[0], tile % 4), header, out);
  }
};
// 16 bits that differ by type, and nibbles of eight scales.
struct BitsAndNibbles {
  static constexpr int kScaleWords = 2;
  __device__ static void LoadScales(const std::byte* entry, int row, int, uint32_t* words) {
    words[0] = FieldWord<0, 2>(entry, row);
    words[1] = FieldWord<2, 4>(entry, row);
  }
};

template <>
struct RowFormat<DType::kIQ4_KS> : Iq4Levels, ByteScalesOfRow<kIq4Shift> {};
template <>
struct RowFormat<DType::kIQ5_KS> : Iq5Levels, ByteScalesOfRow<kIq5Shift> {};
template <>
struct RowFormat<DType::kIQ4_KSS> : Levels {
  static constexpr int kScaleWords = 0;
  __device__ static void LoadScales(const std::byte*, int, int, uint32_t*) {}
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    uint32_t nibbles[4];
    Nibbles(codes, nibbles);
    Iq4Levels::Codes(nibbles, out);
  }
  __device__ static void MixedCodes(const uint32_t* codes, uint32_t (&out)[8]) {
    uint32_t nibbles[4];
    Nibbles(codes, nibbles);
    Iq4Levels::MixedCodes(nibbles, out);
  }
  __device__ static void Nibbles(const uint32_t* codes, uint32_t (&nibbles)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t gray = codes[i] & 0xFFFEFFFEu;
      nibbles[i] = gray ^ ((gray >> 1) & 0x7FFF7FFFu);
    }
  }
  // The byte's bits are the lowest ones of the eight 16-bit words of codes.
  __device__ static void Scales(const uint32_t*, const uint32_t* codes, int, float header, HalfScales& out) {
    const uint32_t first = __byte_perm(codes[0], codes[1], 0x6420) & 0x01010101u, last = __byte_perm(codes[2], codes[3], 0x6420);
    const uint32_t bits = first | (last << 4 & 0x10101010u);  // bits k and k + 4 of the byte are in byte k
    SetByteScale<kIq4Shift>((bits * 0x01020408u) >> 24, header, out);
  }
};
template <>
struct RowFormat<DType::kIQ2_KS> : Iq2Levels, BitsAndNibbles {
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float header, HalfScales& out) {
    const uint32_t extra = words[0] >> tile, scale = ((words[1] >> (4 * tile)) & 15u) | ((extra >> 8) & 1u) << 4;
    out.Set(header * static_cast<float>(static_cast<int>(scale) - 16));
    ShiftLevels<kIq2Shift>((extra & 1u) * 3u, out);
  }
};
template <>
struct RowFormat<DType::kIQ3_KS> : Iq3Levels, BitsAndNibbles {
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float header, HalfScales& out) {
    const uint32_t extra = words[0] >> tile;
    const uint32_t scale = ((words[1] >> (8 * (tile % 4) + tile / 4 * 4)) & 15u) | (extra & 1u) << 4;
    out.Set(header * static_cast<float>(static_cast<int>(scale) - 16));
    ShiftLevels<kIq3Shift>(((extra >> 8) & 1u) * 3u, out);
  }
};
template <>
struct RowFormat<DType::kIQ2_KL> : SignedLevels, BitsAndNibbles {
  // The levels of a pair are two of kIq3Values; an entry has the places of both, as nibbles.
  static constexpr LevelTable<32> Places() {
    LevelTable<32> table{};
    for (size_t i = 0; i < kIq2KlPairs.size(); ++i) {
      for (int place = 0; place < 2; ++place) {
        uint32_t at = 0;
        while (kIq3Values[at] != static_cast<int8_t>(kIq2KlPairs[i] >> (8 * place) & 255)) ++at;
        table.words[i / 4] |= at << (8 * (i % 4) + 4 * place);
      }
    }
    return table;
  }
  // Nibble j is in bits 4j of two words, its fifth bit is bit j of the third.
  __device__ static void Codes(const uint32_t* codes, uint32_t (&out)[8]) {
    constexpr LevelTable<32> kPlaces = Places();
    constexpr auto kLevels = MakeLevels(kIq3Values);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t places[2];
      Look32(kPlaces, codes[i], SpreadToNibbles<3>(ByteOf(codes[2], i)), places);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        out[4 * i + k] =
            Permute(Held(kLevels.words[0] ^ 0x80808080u), kLevels.words[1] ^ 0x80808080u, places[k / 2] >> (16 * (k % 2)));
      }
    }
  }
  __device__ static void Scales(const uint32_t* words, const uint32_t*, int tile, float header, HalfScales& out) {
    const uint32_t low = MoveBits<4>(words[1], 8 * (tile % 4) + tile / 4 * 4, 16), pair = MoveBits<2>(words[0], 2 * tile, 20);
    out.Set(TimesLess32(header, NumberAbove128(low | pair, 0x003F0000u)));
  }
};

}  // namespace ferry::cuda
