#pragma once

// The readers of grids for AVX2, which has no look-up in a table of more than 16 bytes but gathers. A tile's entries are copied
// one by one through general registers to where a register's lanes will be, a tile ahead of their use: a wide load of what narrow
// stores have just written waits until they are in the cache. Only for *_avx2.cc.
//
// That is, for a tile of 16 x 32, 64 entries (IQ2, IQ1) or 128 (IQ3): two loads and a store each. With three loads a cycle no
// tile takes less than 43 or 85 cycles. Signs and products are about 200 instructions beside them, which three or four ports
// share. So one row alone goes otherwise: one_row_avx2.h.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/int_simd_avx2.h"
// Behind it.
#include "kernels/cpu/readers_of_codes.h"

namespace ferry {
namespace {

// A tile ready for products: unsigned codes, or sizes beside bytes whose signs are those of the codes.
struct Weights {
  I32x16 codes[kGroups], sizes[kGroups];
};

constexpr int kEntryBytesOfTile = 512;

// Where the entry of row r goes. Lanes 0 to 7 are rows 0 4 8 12 1 5 9 13, lanes 8 to 15 rows 2 6 10 14 3 7 11 15; of entries of
// eight numbers four registers hold 0 4 1 5, 8 12 9 13, 2 6 3 7 and 10 14 11 15.
constexpr int LaneOfFour(int row) { return row % 4 * 4 + row / 4; }
constexpr int PlaceOfEight(int row) { return row % 4 / 2 * 8 + row / 8 * 4 + row % 2 * 2 + row / 4 % 2; }

// Copies grid[index(row, i)] for the tile's rows and i from 0 to kCount - 1.
template <int kCount, typename Entry, typename Index>
inline void CopyEntries(const Entry* grid, std::byte* found, const Index& index) {
  Unroll<16 * kCount>([&]<int at>() {
    constexpr int kRow = at / kCount, i = at % kCount;
    constexpr int kPlace = sizeof(Entry) == 8 ? PlaceOfEight(kRow) : LaneOfFour(kRow);
    Entry entry = grid[index(kRow, i)];
    asm("" : "+r"(entry));  // else the compiler makes vectors of them
    std::memcpy(found + (16 * i + kPlace) * static_cast<int>(sizeof(Entry)), &entry, sizeof(Entry));
  });
}
// The two groups of number i of entries of eight.
inline void ReadEight(const std::byte* found, int i, I32x16* groups) {
  const auto four = [&](int at) { return _mm256_load_ps(reinterpret_cast<const float*>(found + 128 * i + 32 * at)); };
  const __m256 a = four(0), b = four(1), c = four(2), d = four(3);
  groups[0] = {_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(c, d, 0x88))};
  groups[1] = {_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)), _mm256_castps_si256(_mm256_shuffle_ps(c, d, 0xDD))};
}

inline uint16_t ShortAt(const std::byte* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}
// Indices of more than eight bits, [16 rows][four]: a byte each of `low`, and above it kMask of what `high` makes of 16 of them.
template <int kMask, typename High>
inline void StoreIndices(const std::byte* low, const High& high, uint16_t (&indices)[64]) {
  for (int i = 0; i < 4; ++i) {
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low + 16 * i)));
    const __m256i above = _mm256_and_si256(high(i), _mm256_set1_epi16(kMask));
    _mm256_store_si256(reinterpret_cast<__m256i*>(indices + 16 * i), _mm256_or_si256(bytes, above));
  }
  asm("" : "+m"(indices));  // else the compiler takes them out of registers one by one
}
inline __m256i FourShorts(int a, int b, int c, int d) {
  const auto s = [](int x) { return static_cast<uint64_t>(static_cast<uint16_t>(x)); };
  return _mm256_set1_epi64x(static_cast<int64_t>(s(a) | s(b) << 16 | s(c) << 32 | s(d) << 48));
}
// A field of one byte: those of rows 4i to 4i + 3, four times each, as shorts.
inline __m256i BytesOfRows(const std::byte* field, int i) {
  int32_t four;
  std::memcpy(&four, field + 4 * i, 4);
  const __m256i spread = _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1, 2, -1, 2, -1, 2, -1, 2, -1, 3,
                                          -1, 3, -1, 3, -1, 3, -1);
  return _mm256_shuffle_epi8(_mm256_set1_epi32(four), spread);
}
inline __m256i ShortsOfRows(const std::byte* field, int i) {  // likewise of two bytes
  int64_t four;
  std::memcpy(&four, field + 8 * i, 8);
  const __m256i spread =
      _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(four), spread);
}

// ----------------------------------------------------------------------------------------------------------------- signs

// The seven bits from bit 7i on of each lane, with an eighth that makes their number even, in byte i.
inline I32x16 EvenSignsOf(I32x16 a) {
  const auto seven = [](int i) { return I32x16::Broadcast(static_cast<int32_t>(127u << (8 * i))); };
  const I32x16 bytes = (a & seven(0)) | (Shift<1>(a) & seven(1)) | (Shift<2>(a) & seven(2)) | (Shift<3>(a) & seven(3));
  static constexpr int8_t kOdd[16] = {0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0};
  const ByteTable<16> odd(kOdd);
  return bytes | (odd[bytes] ^ odd[Shift<-4>(bytes)]);
}
// Bytes of 255 or 0: bit j of byte kByte of each lane for column j of eight.
template <int kByte>
inline void MasksOf(I32x16 signs, I32x16 (&masks)[2]) {
  const __m256i spread = _mm256_setr_epi8(kByte, kByte, kByte, kByte, 4 + kByte, 4 + kByte, 4 + kByte, 4 + kByte, 8 + kByte,
                                          8 + kByte, 8 + kByte, 8 + kByte, 12 + kByte, 12 + kByte, 12 + kByte, 12 + kByte, kByte,
                                          kByte, kByte, kByte, 4 + kByte, 4 + kByte, 4 + kByte, 4 + kByte, 8 + kByte, 8 + kByte,
                                          8 + kByte, 8 + kByte, 12 + kByte, 12 + kByte, 12 + kByte, 12 + kByte);
  const I32x16 eight = {_mm256_shuffle_epi8(signs.lo, spread), _mm256_shuffle_epi8(signs.hi, spread)};
  const int32_t bits[2] = {0x08040201, static_cast<int32_t>(0x80402010)};
  for (int i = 0; i < 2; ++i) {
    const I32x16 bit = I32x16::Broadcast(bits[i]), here = eight & bit;
    masks[i] = {_mm256_cmpeq_epi8(here.lo, bit.lo), _mm256_cmpeq_epi8(here.hi, bit.hi)};
  }
}
// What gives the codes of sizes (or of unsigned codes, kZero too large) their signs.
template <typename Codes>
inline void SetSigns(I32x16 signs, Weights& w) {
  Unroll<4>([&]<int i>() {
    I32x16 masks[2];
    MasksOf<i>(signs, masks);
    for (int j = 0; j < 2; ++j) {
      const int g = 2 * i + j;
      if constexpr (Codes::kSigned) {
        w.codes[g] = masks[j] | I32x16::BroadcastByte(1);
      } else {
        w.codes[g] = SubBytes(w.sizes[g] ^ masks[j], AddBytes(masks[j], I32x16::BroadcastByte(-Codes::kZero)));
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------- readers
//
// Indices gives those of a tile by row and number, FindEntries copies what they stand for, Read makes weights of that. Signs
// gives the 32 of each row, of words as kLoad has them.

template <typename Codes>
inline void FindEntries(const std::byte* tile, std::byte* found) {
  CopyEntries<Codes::kPerRow>(Codes::kGrid, found, typename Codes::Indices(tile));
}

using LoadWordOfRows = I32x16(const std::byte* field);

template <int kLargest>
struct EightCodes : GridCodes<kLargest> {
  static constexpr bool kFinds = true, kHasSigns = true;
  static constexpr int kPerRow = 4;
  static void ReadSizes(const std::byte* found, Weights& w) {
    for (int i = 0; i < 4; ++i) ReadEight(found, i, w.sizes + 2 * i);
  }
};
template <int kLargest>
struct FourCodes : GridCodes<kLargest> {
  static constexpr bool kFinds = true, kHasSigns = true;
  static constexpr int kPerRow = 8;
  static void ReadSizes(const std::byte* found, Weights& w) {
    for (int g = 0; g < kGroups; ++g) w.sizes[g] = I32x16::Load(found + 64 * g);
  }
};

struct Iq2XxsCodes : EightCodes<43> {
  static constexpr const uint64_t* kGrid = kGridIq2Xxs;
  struct Indices {
    const std::byte* tile;
    explicit Indices(const std::byte* codes) : tile(codes) {}
    int operator()(int row, int i) const { return static_cast<uint8_t>(tile[4 * row + i]); }
  };
  template <LoadWordOfRows kLoad>
  static I32x16 Signs(const std::byte* tile) {
    return EvenSignsOf(kLoad(tile + 4 * kTileRows));
  }
  static void Read(const std::byte* tile, const std::byte* found, Weights& w) {
    ReadSizes(found, w);
    SetSigns<Iq2XxsCodes>(Signs<LoadWord>(tile), w);
  }
};
struct Iq2XsCodes : EightCodes<43> {
  static constexpr const uint64_t* kGrid = kGridIq2Xs;
  struct Indices {
    const std::byte* tile;
    explicit Indices(const std::byte* codes) : tile(codes) {}
    int operator()(int row, int i) const { return ShortAt(tile + 4 * kTileRows * (i / 2) + 4 * row + i % 2 * 2) & 511; }
  };
  template <LoadWordOfRows kLoad>
  static I32x16 Signs(const std::byte* tile) {
    const I32x16 a = Shift<-9>(kLoad(tile)), b = Shift<-9>(kLoad(tile + 4 * kTileRows));
    // Four times seven bits, whose places EvenSignsOf takes for granted.
    const I32x16 low = I32x16::Broadcast(127), high = I32x16::Broadcast(127 << 7);
    return EvenSignsOf((a & low) | (Shift<-9>(a) & high) | Shift<14>((b & low) | (Shift<-9>(b) & high)));
  }
  static void Read(const std::byte* tile, const std::byte* found, Weights& w) {
    ReadSizes(found, w);
    SetSigns<Iq2XsCodes>(Signs<LoadWord>(tile), w);
  }
};
struct Iq2SCodes : EightCodes<43> {
  static constexpr const uint64_t* kGrid = kGridIq2S;
  struct Indices {
    alignas(32) uint16_t indices[64];
    explicit Indices(const std::byte* tile) {
      const __m256i places = FourShorts(256, 64, 16, 4);
      StoreIndices<0x300>(
          tile, [&](int i) { return _mm256_mullo_epi16(BytesOfRows(tile + 8 * kTileRows, i), places); }, indices);
    }
    int operator()(int row, int i) const { return indices[4 * row + i]; }
  };
  template <LoadWordOfRows kLoad>
  static I32x16 Signs(const std::byte* tile) {
    return kLoad(tile + 4 * kTileRows);
  }
  static void Read(const std::byte* tile, const std::byte* found, Weights& w) {
    ReadSizes(found, w);
    SetSigns<Iq2SCodes>(Signs<LoadWord>(tile), w);
  }
};
struct Iq3XxsCodes : FourCodes<62> {
  static constexpr const uint32_t* kGrid = kGridIq3Xxs;
  struct Indices {
    const std::byte* tile;
    explicit Indices(const std::byte* codes) : tile(codes) {}
    int operator()(int row, int i) const { return static_cast<uint8_t>(tile[4 * kTileRows * (i / 4) + 4 * row + i % 4]); }
  };
  template <LoadWordOfRows kLoad>
  static I32x16 Signs(const std::byte* tile) {
    return EvenSignsOf(kLoad(tile + 8 * kTileRows));
  }
  static void Read(const std::byte* tile, const std::byte* found, Weights& w) {
    ReadSizes(found, w);
    SetSigns<Iq3XxsCodes>(Signs<LoadWord>(tile), w);
  }
};
struct Iq3SCodes : FourCodes<15> {
  static constexpr bool kSigned = false;
  static constexpr int kZero = 16;
  static constexpr int kMaxByte = 31;
  static constexpr const uint32_t* kGrid = kGridIq3S;

  struct Indices {
    alignas(32) uint16_t indices[2][64];
    explicit Indices(const std::byte* tile) {
      Unroll<2>([&]<int half>() {
        const __m256i places = half == 0 ? FourShorts(256, 128, 64, 32) : FourShorts(16, 8, 4, 2);
        const auto high = [&](int i) { return _mm256_mullo_epi16(BytesOfRows(tile + 12 * kTileRows, i), places); };
        StoreIndices<0x100>(tile + 4 * kTileRows * half, high, indices[half]);
      });
    }
    int operator()(int row, int i) const { return indices[i / 4][4 * row + i % 4]; }
  };
  template <LoadWordOfRows kLoad>
  static I32x16 Signs(const std::byte* tile) {
    return kLoad(tile + 8 * kTileRows);
  }
  static void Read(const std::byte* tile, const std::byte* found, Weights& w) {
    ReadSizes(found, w);
    SetSigns<Iq3SCodes>(Signs<LoadWord>(tile), w);
  }
};

// Eight times the numbers of the grid of IQ1, plus 16: unsigned codes but for their shift.
constexpr int kIq1Zero = 16;
constexpr std::array<uint64_t, 2048> UnsignedIq1() {
  std::array<uint64_t, 2048> grid{};
  for (size_t i = 0; i < grid.size(); ++i) {
    for (int at = 0; at < 64; at += 8) {
      grid[i] |= static_cast<uint64_t>(kIq1Zero + 8 * static_cast<int8_t>(kGridIq1[i] >> at)) << at;
    }
  }
  return grid;
}
// kBits from one index's three high bits to the next one's.
template <int kBits>
struct Iq1Codes : EightCodes<9> {
  static constexpr bool kSigned = false, kHasSigns = false;
  static constexpr int kZero = kIq1Zero;
  static constexpr int kMaxByte = kIq1Zero + 9;
  static constexpr std::array<uint64_t, 2048> kUnsigned = UnsignedIq1();
  static constexpr const uint64_t* kGrid = kUnsigned.data();

  struct Indices {
    alignas(32) uint16_t indices[64];
    explicit Indices(const std::byte* tile) {
      // Index i has its bits from 8 on: shifted left, or right in the upper half of a product.
      const __m256i left = FourShorts(256, 256 >> kBits, 256 >> 2 * kBits, 0);
      const __m256i right = FourShorts(0, 0, 0, 1 << (24 - 3 * kBits));
      const auto high = [&](int i) {
        const __m256i words = ShortsOfRows(tile + 4 * kTileRows, i);
        return _mm256_or_si256(_mm256_mullo_epi16(words, left), _mm256_mulhi_epu16(words, right));
      };
      StoreIndices<0x700>(tile, high, indices);
    }
    int operator()(int row, int i) const { return indices[4 * row + i]; }
  };
  static void Read(const std::byte* tile, const std::byte* found, Weights& w) {
    const I32x16 word = LoadShort(tile + 4 * kTileRows), one = I32x16::BroadcastByte(1);
    Unroll<4>([&]<int i>() {
      constexpr int kDownAt = kBits == 3 ? 15 : 4 * i + 3;
      const I32x16 down = ShiftRightSigned<31>(Shift<31 - kDownAt>(word)) | one;
      I32x16 groups[2];
      ReadEight(found, i, groups);
      for (int j = 0; j < 2; ++j) w.codes[2 * i + j] = AddBytes(groups[j], down);
    });
  }
};
using Iq1SCodes = Iq1Codes<3>;
using Iq1MCodes = Iq1Codes<4>;

}  // namespace
}  // namespace ferry
