#pragma once

// 32 columns of one row of a matrix in the tiled layout, read from memory into registers and decoded: one specialisation of
// RowFormat for each type that is not decoded by dequant.cuh's Decoder. Each has
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

// -------------------------------------------------------------------------------------------------------------- grids

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

// -------------------------------------------------------------------------------------------------------------- rows

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
