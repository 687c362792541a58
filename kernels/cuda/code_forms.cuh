#pragma once

// The bit fields of common/model/formats/format.h in registers: 32 codes of a row as eight words, word g holding those of columns
// 4g .. 4g + 3, a byte each, and look-ups of levels for several bytes at once.

#include <cstdint>
#include <tuple>

#include "kernels/cuda/device_code.cuh"

namespace ferry::cuda {

__device__ inline uint32_t ByteOf(uint32_t word, int index) { return (word >> (8 * index)) & 255u; }
__device__ inline float HalfBits(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<unsigned short>(bits))); }

// Nibbles: word i holds group i in the low and group i + 4 in the high half of each byte.
__device__ inline void UnpackNibbles(const uint32_t* nibbles, uint32_t (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = nibbles[i] & 0x0F0F0F0Fu;
    out[i + 4] = (nibbles[i] >> 4) & 0x0F0F0F0Fu;
  }
}
// Both groups of one such word.
__device__ inline void UnpackGroups(uint32_t nibbles, uint32_t (&out)[2]) {
  out[0] = nibbles & 0x0F0F0F0Fu;
  out[1] = (nibbles >> 4) & 0x0F0F0F0Fu;
}
// Pairs: word i holds group 4i + j in bits 2j and 2j + 1 of each byte.
__device__ inline void UnpackPairs(const uint32_t* pairs, uint32_t (&out)[8]) {
#pragma unroll
  for (int g = 0; g < 8; ++g) out[g] = (pairs[g / 4] >> (2 * (g % 4))) & 0x03030303u;
}
// Adds bit g of each byte to the codes of group g as their bit kTo.
template <int kTo>
__device__ inline void AddBits(uint32_t bits, uint32_t (&out)[8]) {
#pragma unroll
  for (int g = 0; g < 8; ++g) out[g] |= (g < kTo ? bits << (kTo - g) : bits >> (g - kTo)) & (0x01010101u << kTo);
}
// Adds pairs to the codes as their bits 4 and 5.
__device__ inline void AddPairs(const uint32_t* pairs, uint32_t (&out)[8]) {
#pragma unroll
  for (int g = 0; g < 8; ++g) {
    const int at = 2 * (g % 4);
    out[g] |= (at < 4 ? pairs[g / 4] << (4 - at) : pairs[g / 4] >> (at - 4)) & 0x30303030u;
  }
}

// Bytes of all ones where bit 0 of a byte is set; the other bits of `bytes` are zeros.
__device__ inline uint32_t MasksOf(uint32_t bytes) { return bytes * 255u; }
// Bit i of four in bit 0 of byte i.
__device__ inline uint32_t SpreadBits(uint32_t four) { return ((four & 15u) * 0x00204081u) & 0x01010101u; }
// Nibble i of the result is the code in byte i of `codes`, each below 16.
__device__ inline uint32_t NibblesOfBytes(uint32_t codes) { return __byte_perm((codes | codes >> 4) & 0x00FF00FFu, 0, 0x4420); }

// Levels of a table as unsigned bytes, four to a word; a level is stored as itself plus 128.
template <int kLevels>
struct LevelTable {
  uint32_t words[kLevels / 4];
};
template <typename Levels>
constexpr auto MakeLevels(const Levels& levels) {
  constexpr int kCount = static_cast<int>(std::tuple_size_v<Levels>);
  LevelTable<kCount> table{};
  for (int i = 0; i < kCount; ++i) {
    table.words[i / 4] |= static_cast<uint32_t>((levels[i] + 128) & 255) << (8 * (i % 4));
  }
  return table;
}

// __byte_perm without the instruction that clears the fourth bit of each selector.
__device__ inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selectors) {
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selectors));
  return out;
}
// `constant` in a register of each thread. The compiler does not know that threadIdx.y is 0 in every launch, so it cannot make
// the constant anew at each use, or copy it from a register of the warp.
__device__ inline uint32_t Held(uint32_t constant) { return constant ^ threadIdx.y; }

// What a table of 32 bytes, each below 128, has for eight codes: nibbles, and their fifth bits in the highest ones of `fifth`'s
// nibbles; out[k]: the bytes of codes 4k .. 4k + 3. Four prmt give eight of the entries each, and zero for codes of the others
// (LookSides).
__device__ inline void Look32(const LevelTable<32>& table, uint32_t nibbles, uint32_t fifth, uint32_t (&out)[2]) {
  constexpr uint32_t kTops = 0x88888888u;
  uint32_t selectors[4];
#pragma unroll
  for (uint32_t eighth = 0; eighth < 4; ++eighth) {
    const uint32_t other = (eighth & 1u ? ~nibbles : nibbles) | (eighth & 2u ? ~fifth : fifth);
    selectors[eighth] = (nibbles & ~kTops) | (other & kTops);
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    out[k] = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      out[k] |= Permute(Held(table.words[2 * e]), table.words[2 * e + 1], selectors[e] >> (16 * k));
    }
  }
}
// Eight bits in the bits kTo of a word's nibbles, among others.
template <int kTo>
__device__ inline uint32_t SpreadToNibbles(uint32_t bits) {
  const uint32_t fours = (bits * 0x1001u) & 0x000F000Fu, pairs = (fours * 0x41u) & 0x03030303u;
  return pairs * (9u << kTo);
}
template <int kLevels>
__device__ inline uint32_t Look8(const LevelTable<kLevels>& table, uint32_t codes) {
  static_assert(kLevels <= 8);
  return __byte_perm(table.words[0], table.words[kLevels / 4 - 1], codes);
}

// An order of 32 columns in which look-ups by prmt leave them: groups a and b of four columns share two words, [a0 b0 a1 b1] and
// [a2 b2 a3 b3]. Words 2q and 2q + 1 are those of groups q and q + 4 (kNibbles), or of the q-th of 0 and 2, 1 and 3, 4 and 6, 5
// and 7 (kPairs: halves of 16 columns stay apart).
// kNibblesApart: as kNibbles, but the words of groups q and q + 4 are q and q + 4.
// kTransposed: words 4h + k have the columns 16h + k, 16h + 4 + k, 16h + 8 + k, 16h + 12 + k.
enum class ColumnOrder { kNatural, kNibbles, kPairs, kNibblesApart, kTransposed };

// Byte j of word i becomes byte i of word j.
__device__ inline void Transpose(uint32_t* words) {
  const uint32_t low[2] = {__byte_perm(words[0], words[1], 0x5140), __byte_perm(words[2], words[3], 0x5140)};
  const uint32_t high[2] = {__byte_perm(words[0], words[1], 0x7362), __byte_perm(words[2], words[3], 0x7362)};
  words[0] = __byte_perm(low[0], low[1], 0x5410), words[1] = __byte_perm(low[0], low[1], 0x7632);
  words[2] = __byte_perm(high[0], high[1], 0x5410), words[3] = __byte_perm(high[0], high[1], 0x7632);
}

// Looks up the levels of a word of nibbles and writes 128 plus each level to words [a0 b0 a1 b1] and [a2 b2 a3 b3]. The first
// eight of the sixteen levels are negative. `negative` and `positive` have the sizes of eight levels, of up to seven bits. Where
// the fourth bit of a selector is set, prmt gives eight times the highest bit of the byte, which is zero here, so the other side
// leaves a code alone.
__device__ inline void LookSides(const LevelTable<8>& negative, const LevelTable<8>& positive, uint32_t nibbles,
                                 uint32_t (&out)[2]) {
  const uint32_t flipped = nibbles ^ 0x88888888u;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t below = Permute(Held(negative.words[0]), negative.words[1], nibbles >> (16 * k));
    const uint32_t above = Permute(Held(positive.words[0]), positive.words[1], flipped >> (16 * k));
    out[k] = above - below + 0x80808080u;  // a byte is 1 at least, so none takes from the next
  }
}
// The sizes of eight levels from kFrom on, which all have one sign.
template <int kFrom, typename Levels>
constexpr auto MakeSide(const Levels& levels) {
  LevelTable<8> table{};
  for (int i = 0; i < 8; ++i) {
    const int level = levels[kFrom + i];
    table.words[i / 4] |= static_cast<uint32_t>(level < 0 ? -level : level) << (8 * (i % 4));
  }
  return table;
}

// The levels of codes of two or three bits in the order kPairs. `bits`: the third ones, or 0.
template <int kLevels>
__device__ inline void LookPairs(const LevelTable<kLevels>& table, const uint32_t* pairs, uint32_t bits, uint32_t (&out)[8]) {
  static_assert(kLevels <= 8);
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    uint32_t selectors = (pairs[q / 2] >> (2 * (q % 2))) & 0x33333333u;
    if constexpr (kLevels == 8) {
      const int group = q / 2 * 4 + q % 2;  // and group + 2
      selectors |= (group < 2 ? bits << (2 - group) : bits >> (group - 2)) & 0x04040404u;
      selectors |= (group + 2 < 6 ? bits << (4 - group) : bits >> (group - 4)) & 0x40404040u;
    }
    out[2 * q] = Permute(Held(table.words[0]), table.words[kLevels / 4 - 1], selectors);
    out[2 * q + 1] = Permute(Held(table.words[0]), table.words[kLevels / 4 - 1], selectors >> 16);
  }
}

// Levels that are values of a cubic, of two codes at once in the halves of a word. Each code is the number of a subnormal f16:
//
//   x = scale * code + centre;  level = (x * x + slope) * x + zero
//
// with a rounding for each of the three. `zero` is so large that the last one leaves a whole number, whose eight bits are the
// lowest ones of the result. Tables of 32 and 64 levels by prmt would take four and eight of them for four codes.
struct Cubic {
  uint32_t scale, centre, slope, zero;  // each an f16, twice; `scale` for codes that begin at bit 0 of their halves

  // `shift` above the level.
  __device__ uint32_t ZeroOf(int shift) const { return zero + static_cast<uint32_t>(shift) * 0x00010001u; }
};
// What a code's level is, by the same three roundings, as a number of any size.
constexpr int WholeLevel(const Cubic& cubic, int code) {
  constexpr double kLeastStep = 1.0 / (1 << 24);
  const auto step_of = [](double x) {  // of the F16 numbers around x
    double step = kLeastStep;
    while ((x < 0 ? -x : x) >= 2048 * step) step *= 2;
    return step;
  };
  const auto round = [&](double x) {
    constexpr double kToWhole = 6755399441055744.0;  // 1.5 * 2^52
    return (x / step_of(x) + kToWhole - kToWhole) * step_of(x);
  };
  const auto number = [](uint32_t bits) {  // of a normal F16
    double value = ((bits & 1023u) | 1024u) * kLeastStep;
    for (uint32_t i = 1; i < (bits >> 10 & 31u); ++i) value *= 2;
    return bits >> 15 & 1u ? -value : value;
  };
  const double x = round(number(cubic.scale) * code * kLeastStep + number(cubic.centre));
  const double level = round(round(x * x + number(cubic.slope)) * x + number(cubic.zero));
  return static_cast<int>(level / step_of(level)) - 1536;  // eight low bits of 1536 + level are those of the level
}
__device__ inline uint32_t MultiplyAddF16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}
__device__ inline uint32_t CubicLevels(const Cubic& cubic, uint32_t scale, uint32_t zero, uint32_t codes) {
  const uint32_t x = MultiplyAddF16(codes, scale, cubic.centre);
  return MultiplyAddF16(MultiplyAddF16(x, x, cubic.slope), x, zero);
}
// The levels of groups i and i + 4, signed bytes, from their word of nibbles and what is above these: bits that begin at bit 4 of
// each half for group i, at bit 8 for group i + 4; above[odd]: of the bytes 0 and 2, of 1 and 3. zeros: of either group.
template <uint32_t kAbove>
__device__ inline void LookCubic(const Cubic& cubic, uint32_t nibbles, const uint32_t (&above_low)[2],
                                 const uint32_t (&above_high)[2], const uint32_t (&zeros)[2], uint32_t (&out)[2]) {
  uint32_t low[2], high[2];
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const uint32_t word = nibbles >> (8 * odd);
    low[odd] = CubicLevels(cubic, cubic.scale, zeros[0], (word & 0x000F000Fu) | (above_low[odd] & (kAbove << 4)));
    constexpr uint32_t kSixteenth = 4u << 10;  // in an f16's exponent
    high[odd] = CubicLevels(cubic, cubic.scale - kSixteenth * 0x00010001u, zeros[1],
                            (word & 0x00F000F0u) | (above_high[odd] & (kAbove << 8)));
  }
  out[0] = __byte_perm(low[0], low[1], 0x6240);
  out[1] = __byte_perm(high[0], high[1], 0x6240);
}

// The levels of up to eight codes of up to three bits, a byte each.
template <int kLevels>
__device__ inline void LookBytes(const LevelTable<kLevels>& table, uint32_t (&codes)[8]) {
#pragma unroll
  for (int g = 0; g < 8; ++g) codes[g] = Look8(table, NibblesOfBytes(codes[g]));
}

// 128 plus or minus each byte of `numbers`, which are below 128: minus where a bit of `signs` is set.
__device__ inline uint32_t Signed(uint32_t numbers, uint32_t signs) {
  const uint32_t ones = SpreadBits(signs);
  return ((numbers | 0x80808080u) ^ MasksOf(ones)) + ones;
}
// The same of numbers that are odd, as signed bytes: all bits but the lowest one change.
__device__ inline uint32_t SignedOdd(uint32_t numbers, uint32_t signs) { return numbers ^ (SpreadBits(signs) * 254u); }
// Four groups of seven sign bits, a byte each, from 28 neighbouring ones.
__device__ inline uint32_t BytesOfSeven(uint32_t bits) {
  const uint32_t halves = __byte_perm(bits, bits << 2, 0x7610);
  return (halves & 0x007F007Fu) | (halves << 1 & 0x7F007F00u);
}
// Seven sign bits of eight in each byte: the last one makes the number of negative signs even.
__device__ inline uint32_t EvenSigns(uint32_t sevens) {
  uint32_t sums = sevens ^ sevens << 4;  // the highest bit of a byte becomes the sum of all
  sums ^= sums << 2;
  sums ^= sums << 1;
  return sevens | (sums & 0x80808080u);
}

}  // namespace ferry::cuda
