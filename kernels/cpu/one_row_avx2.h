#pragma once

// One row of activations times a tile of codes from a table or a grid, for AVX2. The tile's rows are not transposed, so the
// activations of a block take few registers and each code is used as soon as it is found; their sums are put into lanes of rows
// at the end (int_simd_avx2.h). Only for *_avx2.cc.
//
//   pairs of rows   4 or 5 bits, grids: a register holds 16 columns of rows 2i and 2i + 1; the four sums of a row are then joined
//   fours of rows   2 or 3 bits: a register holds columns 4k to 4k + 3 and 16 + 4k to 16 + 4k + 3 of rows 4i to 4i + 3
//
// OneRow<Codes>::Dots gives the dot products with columns 0 to 15 and 16 to 31, or of both together. Codes are kZero too large,
// and kShift too small in the rows that have their table shifted.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/grids_avx2.h"

namespace ferry {
namespace {

// How many products of pairs of bytes a 16-bit sum takes: 1, 2 or 4.
constexpr int DepthOf(int max_byte) {
  const int pairs = 32767 / (2 * 127 * max_byte);
  return pairs >= 4 ? 4 : pairs >= 2 ? 2 : 1;
}
// Sums of kTerms such products are added in 16 bits while a sum takes them, then in 32, which 0 terms stand for.
template <int kDepth>
constexpr int TermsOfTwo(int terms) {
  return 2 * terms <= kDepth ? 2 * terms : 0;
}
template <int kTerms>
inline __m256i Widened(__m256i a) {
  return kTerms == 0 ? a : _mm256_madd_epi16(a, _mm256_set1_epi16(1));
}
template <int kDepth, int kTerms>
inline __m256i AddTerms(__m256i a, __m256i b) {
  if constexpr (TermsOfTwo<kDepth>(kTerms) > 0) return _mm256_add_epi16(a, b);
  return _mm256_add_epi32(Widened<kTerms>(a), Widened<kTerms>(b));
}

inline __m256i LoadTwice(const void* sixteen_bytes) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(sixteen_bytes)));
}

// Of grids: what is found of this tile, and where that of the next tile is to be copied.
struct Entries {
  const std::byte *found, *next_tile;
  std::byte* next;
};

template <typename Codes>
struct OneRow {
  static constexpr bool kExists = false;
};

// ---------------------------------------------------------------------------------------------------------- pairs of rows

// Columns 0 to 15 and 16 to 31, each twice. Signed codes take the signs of x and multiply its sizes.
struct ActivatedHalves {
  __m256i x[2], sizes[2];
  explicit ActivatedHalves(const std::byte* in) {
    for (int h = 0; h < 2; ++h) x[h] = LoadTwice(in + 16 * h), sizes[h] = _mm256_abs_epi8(x[h]);
  }
};
// Each of two rows' words of a field, for all bytes of the row.
inline __m256i WordsOfPair(const std::byte* field, int pair) {
  int64_t two;
  std::memcpy(&two, field + 8 * pair, 8);
  const __m256i of_row =
      _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(two), of_row);
}
// The dot products of rows 0 4 8 12 1 5 9 13, or of those two further on. multiply(pair, products) sets the products of a pair of
// rows, two neighbours added in 16 bits, for columns 0 to 15 and 16 to 31.
template <int kHalf, int kDepth, int kParts, typename Multiply>
inline void DotsOfHalf(const Multiply& multiply, __m256i (&dots)[kParts]) {
  constexpr int kFirst = kParts == 2 ? 1 : TermsOfTwo<kDepth>(1), kSecond = TermsOfTwo<kDepth>(kFirst);
  __m256i sums[2][kParts], joined[2][kParts];
  Unroll<4>([&]<int i>() {
    __m256i products[2];
    multiply.template operator()<kHalf + 2 * i>(products);
    if constexpr (kParts == 2) {
      sums[i % 2][0] = products[0], sums[i % 2][1] = products[1];
    } else {
      sums[i % 2][0] = AddTerms<kDepth, 1>(products[0], products[1]);
    }
    if constexpr (i % 2 == 0) return;
    for (int part = 0; part < kParts; ++part) {
      const __m256i a = sums[0][part], b = sums[1][part];
      joined[i / 2][part] = AddTerms<kDepth, kFirst>(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    }
  });
  for (int part = 0; part < kParts; ++part) {
    const __m256i a = joined[0][part], b = joined[1][part];
    const __m256i sum = AddTerms<kDepth, kSecond>(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    dots[part] = Widened<TermsOfTwo<kDepth>(kSecond)>(sum);
  }
}
template <int kDepth, int kParts, typename Multiply>
inline void DotsOfPairs(const Multiply& multiply, I32x16 (&dots)[kParts]) {
  __m256i halves[2][kParts];
  DotsOfHalf<0, kDepth>(multiply, halves[0]);
  DotsOfHalf<1, kDepth>(multiply, halves[1]);
  for (int part = 0; part < kParts; ++part) dots[part] = {halves[0][part], halves[1][part]};
}

template <int kBits, const auto& kLevels, int kLargest, int kTableShift>
requires(kBits == 4 || kBits == 5) struct OneRow<TableCodes<kBits, kLevels, kLargest, kTableShift>> {
  using Codes = TableCodes<kBits, kLevels, kLargest, kTableShift>;
  static_assert(std::ranges::find(kLevels, -128) == kLevels.end());  // which has no opposite
  static constexpr bool kExists = true;
  static constexpr int kZero = Codes::kZero, kShift = kTableShift, kDepth = DepthOf(Codes::kMaxByte);

  template <int kParts>
  static void Dots(const std::byte* tile, const Entries&, const std::byte* activations, I32x16 (&dots)[kParts]) {
    const ActivatedHalves in(activations);
    const auto multiply = [&]<int pair>(__m256i(&products)[2]) {
      __m256i levels[2];
      Levels(tile, pair, levels);
      for (int h = 0; h < 2; ++h) {
        if constexpr (Codes::kSigned) {
          products[h] = _mm256_maddubs_epi16(in.sizes[h], _mm256_sign_epi8(levels[h], in.x[h]));
        } else {
          products[h] = _mm256_maddubs_epi16(levels[h], in.x[h]);
        }
      }
    };
    DotsOfPairs<kDepth>(multiply, dots);
  }

 private:
  static constexpr auto kBiased = BiasedLevels<kLevels, Codes::kBias>();
  // What the fifth bit changes in a level.
  static constexpr std::array<int8_t, 16> Flips() {
    std::array<int8_t, 16> flips{};
    for (size_t i = 0; i < 16; ++i) flips[i] = static_cast<int8_t>(kBiased[i] ^ kBiased[(16 + i) % kBiased.size()]);
    return flips;
  }
  static void Levels(const std::byte* tile, int pair, __m256i (&levels)[2]) {
    const __m256i both = Load256(tile + 32 * pair), nibble = _mm256_set1_epi8(15), table = LoadTwice(kBiased.data());
    const __m256i indices[2] = {_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)};
    for (int h = 0; h < 2; ++h) levels[h] = _mm256_shuffle_epi8(table, indices[h]);
    if constexpr (kBits == 4) return;
    static constexpr auto kFlips = Flips();
    const __m256i words = WordsOfPair(tile + 16 * kTileRows, pair);  // column 4g + b has bit g of byte b
    const __m256i first =
        _mm256_setr_epi32(0x01010101, 0x02020202, 0x04040404, 0x08080808, 0x01010101, 0x02020202, 0x04040404, 0x08080808);
    for (int h = 0; h < 2; ++h) {
      const __m256i bit = _mm256_and_si256(words, h == 0 ? first : _mm256_slli_epi32(first, 4));
      const __m256i absent = _mm256_cmpeq_epi8(bit, _mm256_setzero_si256());  // its top bit makes a shuffle give 0
      const __m256i flips = _mm256_shuffle_epi8(LoadTwice(kFlips.data()), _mm256_or_si256(indices[h], absent));
      levels[h] = _mm256_xor_si256(levels[h], flips);
    }
  }
};

// ------------------------------------------------------------------------------------------------------------------ grids
//
// The next tile's entries are copied between the products of this one, a pair of rows each time: loads and products want other
// ports of the processor, which looks too few instructions ahead to find the ones behind the others. Entries of a row lie side by
// side, as two stores go in a cycle if they are into one line of the cache.

template <typename Codes, int kPair>
inline void CopyPair(const typename Codes::Indices& indices, std::byte* found) {
  Unroll<2 * Codes::kPerRow>([&]<int at>() {
    constexpr int kRow = at / Codes::kPerRow, i = at % Codes::kPerRow, kBytes = kTileCols / Codes::kPerRow;
    auto entry = Codes::kGrid[indices(2 * kPair + kRow, i)];
    asm("" : "+r"(entry));  // else the compiler makes vectors of them
    std::memcpy(found + 64 * kPair + i * kBytes / 16 * 32 + kRow * 16 + i * kBytes % 16, &entry, kBytes);
  });
}
template <typename Codes>
inline void CopyPairs(const std::byte* tile, std::byte* found) {
  const typename Codes::Indices indices(tile);
  Unroll<8>([&]<int pair>() { CopyPair<Codes, pair>(indices, found); });
}
// Bytes of -1 where a bit is set, else of 1: for each byte one of the words' bytes, and one of its bits.
inline __m256i OnesOf(__m256i words, __m256i places, __m256i bits) {
  const __m256i here = _mm256_and_si256(_mm256_shuffle_epi8(words, places), bits);
  return _mm256_or_si256(_mm256_cmpeq_epi8(here, bits), _mm256_set1_epi8(1));
}
inline __m256i EightOfEach(uint8_t a, uint8_t b) {
  constexpr uint64_t kEight = 0x0101010101010101;
  const int64_t first = static_cast<int64_t>(a * kEight), last = static_cast<int64_t>(b * kEight);
  return _mm256_setr_epi64x(first, last, first, last);
}
inline I32x16 LoadRows(const std::byte* field) { return {Load256(field), Load256(field + 32)}; }

// Sizes from a grid, and signs.
template <typename Codes>
requires(Codes::kHasSigns) struct OneRow<Codes> {
  static constexpr bool kExists = true;
  static constexpr int kZero = 0, kShift = 0, kDepth = DepthOf(Codes::kMaxByte);

  template <int kParts>
  static void Dots(const std::byte* tile, const Entries& entries, const std::byte* activations, I32x16 (&dots)[kParts]) {
    const ActivatedHalves in(activations);
    const typename Codes::Indices indices(entries.next_tile);
    alignas(32) std::byte signs[4 * kTileRows];
    Codes::template Signs<LoadRows>(tile).Store(signs);
    asm("" : "+m"(signs));  // else the compiler takes them out of registers one by one
    const __m256i bits = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const auto multiply = [&]<int pair>(__m256i(&products)[2]) {
      const __m256i* const sizes = reinterpret_cast<const __m256i*>(entries.found + 64 * pair);
      int64_t two;  // words of signs
      std::memcpy(&two, signs + 8 * pair, 8);
      for (int h = 0; h < 2; ++h) {
        const __m256i places = _mm256_add_epi8(_mm256_setr_epi64x(0, 0x0101010101010101, 0x0404040404040404, 0x0505050505050505),
                                               _mm256_set1_epi8(static_cast<char>(2 * h)));
        const __m256i ones = OnesOf(_mm256_set1_epi64x(two), places, bits);
        products[h] = _mm256_maddubs_epi16(sizes[h], _mm256_sign_epi8(in.x[h], ones));
      }
      CopyPair<Codes, pair>(indices, entries.next);
    };
    DotsOfPairs<kDepth>(multiply, dots);
  }
};

// Unsigned codes from the grid of IQ1, and a shift of one up or down for all of a row or for each eight columns.
template <int kBits>
struct OneRow<Iq1Codes<kBits>> {
  using Codes = Iq1Codes<kBits>;
  static constexpr bool kExists = true;
  static constexpr int kZero = Codes::kZero, kShift = 0, kDepth = DepthOf(Codes::kMaxByte);

  template <int kParts>
  static void Dots(const std::byte* tile, const Entries& entries, const std::byte* activations, I32x16 (&dots)[kParts]) {
    const ActivatedHalves in(activations);
    const typename Codes::Indices indices(entries.next_tile);
    const __m256i of_row = _mm256_setr_epi64x(0, 0, 0x0202020202020202, 0x0202020202020202);
    const __m256i bits = kBits == 3 ? _mm256_set1_epi8(-128) : EightOfEach(0x08, 0x80);
    const auto multiply = [&]<int pair>(__m256i(&products)[2]) {
      const __m256i* const codes = reinterpret_cast<const __m256i*>(entries.found + 64 * pair);
      int32_t two;  // rows' words of two bytes
      std::memcpy(&two, tile + 4 * kTileRows + 4 * pair, 4);
      for (int h = 0; h < 2; ++h) {
        const __m256i places = _mm256_or_si256(of_row, _mm256_set1_epi8(kBits == 3 ? 1 : static_cast<char>(h)));
        products[h] = _mm256_maddubs_epi16(_mm256_add_epi8(codes[h], OnesOf(_mm256_set1_epi32(two), places, bits)), in.x[h]);
      }
      CopyPair<Codes, pair>(indices, entries.next);
    };
    DotsOfPairs<kDepth>(multiply, dots);
  }
};

// ---------------------------------------------------------------------------------------------------------- fours of rows

template <int kBits, const auto& kLevels, int kLargest, int kTableShift>
requires(kBits == 2 || kBits == 3) struct OneRow<TableCodes<kBits, kLevels, kLargest, kTableShift>> {
  using Codes = TableCodes<kBits, kLevels, kLargest, kTableShift>;
  static_assert(!Codes::kSigned);
  static constexpr bool kExists = true;
  static constexpr int kZero = Codes::kZero, kShift = kTableShift, kDepth = DepthOf(Codes::kMaxByte);

  template <int kParts>
  static void Dots(const std::byte* tile, const Entries&, const std::byte* activations, I32x16 (&dots)[kParts]) {
    __m256i x[4];
    const __m256i first = LoadTwice(activations), last = LoadTwice(activations + 16);
    const __m256i low = _mm256_unpacklo_epi32(first, last), high = _mm256_unpackhi_epi32(first, last);
    x[0] = _mm256_shuffle_epi32(low, 0x44), x[1] = _mm256_shuffle_epi32(low, 0xEE);
    x[2] = _mm256_shuffle_epi32(high, 0x44), x[3] = _mm256_shuffle_epi32(high, 0xEE);
    __m256i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = SumsOfFour(tile, i, x);
    // Rows 0 4 8 12 and 2 6 10 14, and those one further on, of the first columns and the last.
    const __m256i a = _mm256_unpacklo_epi32(sums[0], sums[1]), b = _mm256_unpacklo_epi32(sums[2], sums[3]);
    const __m256i c = _mm256_unpackhi_epi32(sums[0], sums[1]), d = _mm256_unpackhi_epi32(sums[2], sums[3]);
    const auto set = [](I32x16& lanes, __m256i even, __m256i odd) {
      lanes = {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
    };
    const __m256i even[2] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)};
    const __m256i odd[2] = {_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d)};
    if constexpr (kParts == 2) {
      for (int h = 0; h < 2; ++h) set(dots[h], even[h], odd[h]);
    } else {
      set(dots[0], _mm256_add_epi32(even[0], even[1]), _mm256_add_epi32(odd[0], odd[1]));
    }
  }

 private:
  static constexpr auto kBiased = BiasedLevels<kLevels, Codes::kBias>();
  // Bit k of four to bit 2, and bit k + 2 to bit 6.
  static constexpr std::array<int8_t, 16> ThirdBits(int k) {
    std::array<int8_t, 16> bytes{};
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>((i >> k & 1) << 2 | (i >> (k + 2) & 1) << 6);
    return bytes;
  }
  static constexpr std::array<int8_t, 16> kThird[2] = {ThirdBits(0), ThirdBits(1)};

  // Of rows 4i to 4i + 3 the sums of the first 16 columns and of the last, one beside the other. A shuffle reads bits 0 to 3 and
  // 7 of an index: of two codes in the nibbles of a byte, both with a top bit of 0, neither has to be cut out.
  static __m256i SumsOfFour(const std::byte* tile, int i, const __m256i (&x)[4]) {
    const __m256i table = LoadTwice(kBiased.data()), pairs = Load256(tile + 32 * i), two = _mm256_set1_epi8(0x33);
    __m256i codes[2] = {_mm256_and_si256(pairs, two),
                        _mm256_and_si256(_mm256_srli_epi32(pairs, 2), two)};  // k = 0 and 2, 1 and 3
    if constexpr (kBits == 3) {
      const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + 8 * kTileRows + 16 * i));
      const __m256i wide = _mm256_cvtepu32_epi64(words);
      const __m256i upper_beside_lower = _mm256_or_si256(wide, _mm256_slli_epi64(wide, 28));
      const __m256i bits = _mm256_and_si256(upper_beside_lower, _mm256_set1_epi8(15));  // bit k of each byte
      for (int k = 0; k < 2; ++k) {
        const __m256i third = _mm256_shuffle_epi8(LoadTwice(kThird[k].data()), bits);
        codes[k] = _mm256_or_si256(codes[k], third);
      }
    }
    __m256i products[4];
    for (int k = 0; k < 4; ++k) {
      const __m256i index = k < 2 ? codes[k] : _mm256_srli_epi32(codes[k - 2], 4);
      products[k] = _mm256_maddubs_epi16(_mm256_shuffle_epi8(table, index), x[k]);
    }
    constexpr int kSecond = TermsOfTwo<kDepth>(1);
    const __m256i first = AddTerms<kDepth, 1>(products[0], products[1]), last = AddTerms<kDepth, 1>(products[2], products[3]);
    return Widened<TermsOfTwo<kDepth>(kSecond)>(AddTerms<kDepth, kSecond>(first, last));
  }
};

}  // namespace
}  // namespace ferry
