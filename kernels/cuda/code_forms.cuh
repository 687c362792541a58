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

// A word of eight nibbles as prmt reads them. Its selectors take three bits of index, since the fourth one means something else:
// so a level comes from one half of a table of 16 or from the other, and another prmt chooses.
struct NibbleSelectors {
  uint32_t index, half;

  __device__ explicit NibbleSelectors(uint32_t codes)
      : index(codes & 0x77777777u), half(((codes >> 1) & 0x44444444u) | 0x32103210u) {}
  // Those of the four nibbles above.
  __device__ void MoveUp() { index >>= 16, half >>= 16; }
};
// The levels of the four lowest nibbles, in their order. kFrom: where the 16 levels begin in the table.
template <int kFrom, int kLevels>
__device__ inline uint32_t Look16(const LevelTable<kLevels>& table, const NibbleSelectors& of) {
  constexpr int kAt = kFrom / 4;
  const uint32_t low = Permute(Held(table.words[kAt]), table.words[kAt + 1], of.index);
  const uint32_t high = Permute(Held(table.words[kAt + 2]), table.words[kAt + 3], of.index);
  return Permute(low, high, of.half);
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
enum class ColumnOrder { kNatural, kNibbles, kPairs, kNibblesApart };

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

// The levels of nibbles in groups.
template <int kFrom = 0, int kLevels>
__device__ inline void LookNibbles(const LevelTable<kLevels>& table, const uint32_t* nibbles, uint32_t (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // The nibbles of a word in their order: columns 4i, 4i + 16, 4i + 1, 4i + 17, ...
    NibbleSelectors of(nibbles[i]);
    const uint32_t first = Look16<kFrom>(table, of);
    of.MoveUp();
    const uint32_t second = Look16<kFrom>(table, of);
    out[i] = __byte_perm(first, second, 0x6420);
    out[i + 4] = __byte_perm(first, second, 0x7531);
  }
}
// The levels of nibbles and a fifth bit of each.
__device__ inline void LookFiveBits(const LevelTable<32>& table, const uint32_t* nibbles, uint32_t bits, uint32_t (&out)[8]) {
  uint32_t upper[8];
  LookNibbles<0>(table, nibbles, out);
  LookNibbles<16>(table, nibbles, upper);
#pragma unroll
  for (int g = 0; g < 8; ++g) {
    const uint32_t mask = MasksOf((bits >> g) & 0x01010101u);
    out[g] = (out[g] & ~mask) | (upper[g] & mask);
  }
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
// Seven sign bits of eight: the last one makes the number of negative signs even.
__device__ inline uint32_t EvenSignBits(uint32_t seven) {
  seven &= 127u;
  return seven | (__popc(seven) & 1u) << 7;
}

}  // namespace ferry::cuda
