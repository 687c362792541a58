#pragma once

// The readers of grids for AVX-512: tables in registers or in the first-level cache, looked up 64 indices at a time by vpermb.
// Only for *_avx512.cc.
//
// An entry of a grid is four numbers of eight levels (IQ3) or eight numbers of three levels (IQ2, IQ1): 12 or 16 bits. So a grid
// is two planes of packed bytes. A look-up in a plane of N entries is N / 64 vpermb, merged by masks of the index bits above six.
// Signs (IQ1: the shift's) then join the packed bytes, and one vpermb for each number turns its level and its sign into a byte.
//
// Instructions for a tile of 16 x 32 and one row, as GCC 12 makes them. Intel has one port for shuffles, which is one of two for
// vectors of 512 bits: no tile takes fewer cycles than its shuffles, nor than half of its instructions on vectors.
//
//               plane look-ups   all vpermb   shuffles   on vectors   bound, cycles
//     IQ2_XXS       2 x   4          17           22           63           32
//     IQ2_XS        2 x   8          26           31          106           53
//     IQ2_S         2 x  16          42           48          122           61
//     IQ3_XXS   2 x 2 x   4          25           33           79           39
//     IQ3_S     2 x 2 x   8          41           49          100           50
//     IQ1_S         2 x  32          73           78          124           78
//     IQ1_M         2 x  32          74           79          156           79
//
// The bytes of a register are then one place of several entries, not neighbouring columns. A product of one row moves the
// activations to match (kOrder); for several rows the registers are transposed, once.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/int_simd_avx512.h"
// Behind it.
#include "kernels/cpu/readers_of_codes.h"

namespace ferry {
namespace {

// ------------------------------------------------------------------------------------------------------------- tables

constexpr int8_t kLevelsIq1[] = {-1, 0, 1};
constexpr int8_t kLevelsIq2[] = {8, 25, 43};
constexpr int8_t kLevelsIq3Xxs[] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr int8_t kLevelsIq3S[] = {1, 3, 5, 7, 9, 11, 13, 15};

template <size_t kEntries>
struct alignas(64) Plane {
  std::array<uint8_t, kEntries> bytes;
};

// The numbers first to first + count of each entry, as places among the levels, each at its bit.
template <typename Entry, size_t kEntries, size_t kLevels, size_t kCount>
constexpr Plane<kEntries> PackedPlane(const Entry (&grid)[kEntries], const int8_t (&levels)[kLevels], int first,
                                      const int (&bits)[kCount]) {
  Plane<kEntries> plane{};
  for (size_t i = 0; i < kEntries; ++i) {
    int packed = 0;
    for (size_t j = 0; j < kCount; ++j) {
      const auto number = static_cast<int8_t>(grid[i] >> (8 * (static_cast<size_t>(first) + j)));
      packed |= static_cast<int>(std::find(levels, levels + kLevels, number) - levels) << bits[j];
    }
    plane.bytes[i] = static_cast<uint8_t>(packed);
  }
  return plane;
}
// For each six bits, the level whose place begins at bit kAt, negated where bit kSignAt is set, and the bias.
template <size_t kLevels>
constexpr Plane<64> SignedLevels(const int8_t (&levels)[kLevels], int at, int sign_at) {
  Plane<64> table{};
  for (int i = 0; i < 64; ++i) {
    const auto place = static_cast<size_t>(i >> at & (kLevels > 4 ? 7 : 3));
    const int level = place < kLevels ? levels[place] : 0;
    table.bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(kSignedBias + (i >> sign_at & 1 ? -level : level));
  }
  return table;
}
// Likewise eight times a level of IQ1, plus one, or minus one where bit 4 is set.
constexpr Plane<64> ShiftedLevels(int at) {
  Plane<64> table{};
  for (int i = 0; i < 64; ++i) {
    const int level = (i >> at & 3) - 1, step = i >> 4 & 1 ? -1 : 1;
    table.bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(kSignedBias + 8 * level + step);
  }
  return table;
}
// Eight signs of seven bits: the eighth makes their number even.
constexpr Plane<128> EvenSignsTable() {
  Plane<128> table{};
  for (int i = 0; i < 128; ++i) table.bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(EvenSigns(i));
  return table;
}

template <size_t kEntries>
inline __m512i PartOf(const Plane<kEntries>& plane, int part) {
  return _mm512_load_si512(plane.bytes.data() + 64 * part);
}
inline __m512i EvenSignsOf(__m512i seven) {  // whatever is above them
  alignas(64) static constexpr Plane<128> kTable = EvenSignsTable();
  return _mm512_permutex2var_epi8(PartOf(kTable, 0), seven, PartOf(kTable, 1));
}

// Byte b of each lane becomes the eight bits of the lane from bit kFirst + kStep * b on; bits beyond the lane are of its
// neighbour.
template <int kFirst, int kStep>
inline __m512i FieldsOf(__m512i lanes) {
  const auto at = [](int i) { return static_cast<char>((i / 4 * 32 + i % 4 * kStep + kFirst) & 63); };
  const __m128i two = _mm_setr_epi8(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(0), at(1), at(2), at(3), at(4),
                                    at(5), at(6), at(7));
  return _mm512_multishift_epi64_epi8(_mm512_broadcast_i32x4(two), lanes);
}
inline __m512i DoubleBytes(__m512i a) { return _mm512_add_epi8(a, a); }
inline __mmask64 TopBits(__m512i a) { return _mm512_movepi8_mask(a); }
// The bits of a where those of `which` are set, else those of b.
inline __m512i Merge(__m512i which, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(which, a, b, 0xCA); }

// ------------------------------------------------------------------------------------------------------------- look-ups

// 64 indices: their low bytes, and the masks that choose among tables of 64.
struct Indices {
  __m512i low;
  __mmask64 second, third, fourth;  // of 64 entries, among 256
  explicit Indices(__m512i bytes) : low(bytes) {
    const __mmask64 seventh = TopBits(DoubleBytes(bytes)), eighth = TopBits(bytes);
    second = _kandn_mask64(eighth, seventh), third = _kandn_mask64(seventh, eighth), fourth = _kand_mask64(eighth, seventh);
  }
};

// Among the 256 entries from entry 256 * kPart on.
template <int kPart, size_t kEntries>
inline __m512i Find256(const Plane<kEntries>& plane, const Indices& i) {
  __m512i found = _mm512_permutexvar_epi8(i.low, PartOf(plane, 4 * kPart));
  found = _mm512_mask_permutexvar_epi8(found, i.second, i.low, PartOf(plane, 4 * kPart + 1));
  found = _mm512_mask_permutexvar_epi8(found, i.third, i.low, PartOf(plane, 4 * kPart + 2));
  return _mm512_mask_permutexvar_epi8(found, i.fourth, i.low, PartOf(plane, 4 * kPart + 3));
}
// Among 256 << kBits entries from entry (256 << kBits) * kPart on; high[i] is index bit 8 + i.
template <int kBits, int kPart = 0, size_t kEntries>
inline __m512i Find(const Plane<kEntries>& plane, const Indices& i, const __mmask64* high) {
  if constexpr (kBits == 0) {
    return Find256<kPart>(plane, i);
  } else {
    const __m512i lower = Find<kBits - 1, 2 * kPart>(plane, i, high), upper = Find<kBits - 1, 2 * kPart + 1>(plane, i, high);
    return _mm512_mask_blend_epi8(high[kBits - 1], lower, upper);
  }
}

// --------------------------------------------------------------------------------------------- from planes to columns

// Register 4q + k, byte b of ReadPlanes() is column 4 * GroupOf(q, b) + k.
struct FourOfIndex {  // byte b of index word q is group 4q + b
  static constexpr int GroupOf(int q, int b) { return 4 * q + b; }
};
template <int kFirstEntry, int kSecondEntry, int kThirdEntry, int kFourthEntry>
struct EightOfIndex {  // byte b of the indices is of entry k..Entry, whose eight columns are groups 2i and 2i + 1
  static constexpr int kEntry[4] = {kFirstEntry, kSecondEntry, kThirdEntry, kFourthEntry};
  static constexpr int GroupOf(int q, int b) { return 2 * kEntry[b] + q; }
};

// Transposes the 4 x 4 bytes of each lane of four registers: byte i of w[j] becomes byte j of w[i].
inline void TransposeBytes(__m512i (&w)[4]) {
  const __m512i bytes = _mm512_set1_epi32(0x00FF00FF), shorts = _mm512_set1_epi32(0x0000FFFF);
  const __m512i even01 = Merge(bytes, w[0], _mm512_slli_epi16(w[1], 8)), odd01 = Merge(bytes, _mm512_srli_epi16(w[0], 8), w[1]);
  const __m512i even23 = Merge(bytes, w[2], _mm512_slli_epi16(w[3], 8)), odd23 = Merge(bytes, _mm512_srli_epi16(w[2], 8), w[3]);
  w[0] = Merge(shorts, even01, _mm512_slli_epi32(even23, 16)), w[2] = Merge(shorts, _mm512_srli_epi32(even01, 16), even23);
  w[1] = Merge(shorts, odd01, _mm512_slli_epi32(odd23, 16)), w[3] = Merge(shorts, _mm512_srli_epi32(odd01, 16), odd23);
}

// What the readers share. Reader has Planes<kTile>(tile, planes).
template <typename Reader, typename Order, int kLargest>
struct PlaneCodes : GridCodes<kLargest> {
  // Column of each byte of the registers of ReadPlanes.
  static constexpr std::array<int8_t, 32> Columns() {
    std::array<int8_t, 32> columns{};
    for (int i = 0; i < 32; ++i)
      columns[static_cast<size_t>(i)] = static_cast<int8_t>(4 * Order::GroupOf(i / 16, i % 4) + i / 4 % 4);
    return columns;
  }
  alignas(32) static constexpr std::array<int8_t, 32> kOrder = Columns();
  // Whether the first four registers are columns 0 to 15.
  static constexpr bool kPartOfQuad = Order::GroupOf(0, 3) < 4;
  // Which bytes are of columns 16 * kPart to 16 * kPart + 15.
  template <int kPart>
  static constexpr __mmask32 MaskOfPart() {
    __mmask32 mask = 0;
    for (int i = 0; i < 32; ++i) mask |= static_cast<__mmask32>(Columns()[static_cast<size_t>(i)] / 16 == kPart) << i;
    return mask;
  }

  static void ReadPlanes(const std::byte* tile, I32x16 (&w)[kGroups]) {
    __m512i planes[2][4];
    Reader::Planes(tile, planes);
    for (int g = 0; g < kGroups; ++g) w[g].v = planes[g / 4][g % 4];
  }
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    __m512i planes[2][4];
    Reader::Planes(tile, planes);
    Unroll<2>([&]<int q>() {
      TransposeBytes(planes[q]);
      Unroll<4>([&]<int b>() { w[Order::GroupOf(q, b)].v = planes[q][b]; });
    });
  }
};

// A block's codes in another order, in memory: a broadcast from there costs no shuffle, which the compiler does not know.
struct MovedCodes {
  alignas(32) int8_t codes[32];
  explicit MovedCodes(__m256i moved) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes), moved);
    asm("" : "+m"(codes));
  }
  __m512i Group(int g) const { return BroadcastGroup(codes + 4 * g); }
};
// dots += registers of ReadPlanes() times a block's codes x: see AddProducts of formats_avx512.cc.
template <typename Codes, int kParts>
inline void AddPlanes(const I32x16 (&w)[kGroups], const int8_t* x, __m512i (&dots)[2]) {
  const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(Codes::kOrder.data()));
  const __m256i natural = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  if constexpr (Codes::kPartOfQuad || kParts == 1) {
    const MovedCodes moved(_mm256_permutexvar_epi8(order, natural));
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) dots[g / 4] = _mm512_dpbusd_epi32(dots[g / 4], w[g].v, moved.Group(g));
  } else {
    // A register has columns of both parts: each part is a product with zeros for the other.
    Unroll<2>([&]<int part>() {
      constexpr __mmask32 kHere = Codes::template MaskOfPart<part>();
      const MovedCodes moved(_mm256_maskz_permutexvar_epi8(kHere, order, natural));
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) dots[part] = _mm512_dpbusd_epi32(dots[part], w[g].v, moved.Group(g));
    });
  }
}

// ------------------------------------------------------------------------------------------------------------- IQ2, IQ1

// Four levels of two bits in each byte of `packed`, and beside them in bits 4 and 5 of beside[i] what goes with numbers 2i and
// 2i + 1.
inline void ReadLevels(__m512i packed, __m512i beside0, __m512i beside1, const Plane<64>& even, const Plane<64>& odd,
                       __m512i (&w)[4]) {
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i first = Merge(low, packed, beside0), second = Merge(low, _mm512_srli_epi16(packed, 4), beside1);
  w[0] = _mm512_permutexvar_epi8(first, PartOf(even, 0)), w[1] = _mm512_permutexvar_epi8(first, PartOf(odd, 0));
  w[2] = _mm512_permutexvar_epi8(second, PartOf(even, 0)), w[3] = _mm512_permutexvar_epi8(second, PartOf(odd, 0));
}

constexpr int kPairBits[] = {0, 2, 4, 6};

// Bit j of each byte of `signs` is the sign of number j.
template <const auto& kGrid, int kHighBits>
inline void ReadIq2(const Indices& indices, const __mmask64* high, __m512i signs, __m512i (&planes)[2][4]) {
  static constexpr auto kFirst = PackedPlane(kGrid, kLevelsIq2, 0, kPairBits),
                        kSecond = PackedPlane(kGrid, kLevelsIq2, 4, kPairBits);
  static constexpr Plane<64> kEven = SignedLevels(kLevelsIq2, 0, 4), kOdd = SignedLevels(kLevelsIq2, 2, 5);
  ReadLevels(Find<kHighBits>(kFirst, indices, high), _mm512_slli_epi16(signs, 4), _mm512_slli_epi16(signs, 2), kEven, kOdd,
             planes[0]);
  ReadLevels(Find<kHighBits>(kSecond, indices, high), signs, _mm512_srli_epi16(signs, 2), kEven, kOdd, planes[1]);
}

struct Iq2XxsCodes : PlaneCodes<Iq2XxsCodes, EightOfIndex<0, 1, 2, 3>, 43> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const Indices indices(LoadWord(tile).v);
    const __m512i signs = EvenSignsOf(FieldsOf<0, 7>(LoadWord(tile + 4 * kTileRows).v));
    ReadIq2<kGridIq2Xxs, 0>(indices, nullptr, signs, planes);
  }
};
struct Iq2XsCodes : PlaneCodes<Iq2XsCodes, EightOfIndex<0, 2, 1, 3>, 43> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const __m512i a = LoadWord(tile).v, b = LoadWord(tile + 4 * kTileRows).v, even = _mm512_set1_epi32(0x00FF00FF);
    const Indices indices(Merge(even, a, _mm512_slli_epi16(b, 8)));
    const __m512i upper = Merge(even, _mm512_srli_epi16(a, 8), b);
    const __mmask64 high = TopBits(_mm512_slli_epi16(upper, 7));
    ReadIq2<kGridIq2Xs, 1>(indices, &high, EvenSignsOf(_mm512_srli_epi16(upper, 1)), planes);
  }
};
struct Iq2SCodes : PlaneCodes<Iq2SCodes, EightOfIndex<0, 1, 2, 3>, 43> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const Indices indices(LoadWord(tile).v);
    const __m512i top = FieldsOf<-6, 2>(LoadByte(tile + 8 * kTileRows).v);
    const __mmask64 high[] = {TopBits(DoubleBytes(top)), TopBits(top)};
    ReadIq2<kGridIq2S, 2>(indices, high, LoadWord(tile + 4 * kTileRows).v, planes);
  }
};

// Bits 5 to 7 of `top` are index bits 8 to 10, bit 4 of `down` is set where the shift is minus one.
inline void ReadIq1(__m512i low, __m512i top, __m512i down, __m512i (&planes)[2][4]) {
  static constexpr auto kFirst = PackedPlane(kGridIq1, kLevelsIq1, 0, kPairBits),
                        kSecond = PackedPlane(kGridIq1, kLevelsIq1, 4, kPairBits);
  static constexpr Plane<64> kEven = ShiftedLevels(0), kOdd = ShiftedLevels(2);
  const Indices indices(low);
  const __m512i twice = DoubleBytes(top);
  const __mmask64 high[] = {TopBits(DoubleBytes(twice)), TopBits(twice), TopBits(top)};
  ReadLevels(Find<3>(kFirst, indices, high), down, down, kEven, kOdd, planes[0]);
  ReadLevels(Find<3>(kSecond, indices, high), down, down, kEven, kOdd, planes[1]);
}
struct Iq1SCodes : PlaneCodes<Iq1SCodes, EightOfIndex<0, 1, 2, 3>, 9> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const __m512i word = LoadShort(tile + 4 * kTileRows).v;
    ReadIq1(LoadWord(tile).v, FieldsOf<-5, 3>(word), FieldsOf<11, 0>(word), planes);
  }
};
struct Iq1MCodes : PlaneCodes<Iq1MCodes, EightOfIndex<0, 1, 2, 3>, 9> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const __m512i word = LoadShort(tile + 4 * kTileRows).v;
    ReadIq1(LoadWord(tile).v, FieldsOf<-5, 4>(word), FieldsOf<-1, 4>(word), planes);
  }
};

// ----------------------------------------------------------------------------------------------------------------- IQ3

constexpr int kTripleBits[] = {0, 5};
template <const auto& kLevels>
struct TripleTables {
  static constexpr Plane<64> kEven = SignedLevels(kLevels, 0, 3), kOdd = SignedLevels(kLevels, 3, 2);
};

// Two words of indices, and a word with the sign of column c in bit c. A packed byte has levels in bits 0 to 2 and 5 to 7 and
// takes their signs between them.
template <const auto& kGrid, const auto& kLevels, int kHighBits>
inline void ReadIq3(const __m512i (&words)[2], const __mmask64* high, __m512i signs, __m512i (&planes)[2][4]) {
  static constexpr auto kFirst = PackedPlane(kGrid, kLevels, 0, kTripleBits),
                        kSecond = PackedPlane(kGrid, kLevels, 2, kTripleBits);
  using Tables = TripleTables<kLevels>;
  const __m512i between = _mm512_set1_epi8(0x18);
  Unroll<2>([&]<int q>() {
    const Indices indices(words[q]);
    const __m512i of_group = FieldsOf<16 * q - 3, 4>(signs);
    Unroll<2>([&]<int i>() {
      const __m512i packed = Find<kHighBits>(i == 0 ? kFirst : kSecond, indices, high + q);
      const __m512i here = i == 0 ? of_group : _mm512_srli_epi16(of_group, 2);
      const __m512i both = _mm512_ternarylogic_epi32(packed, here, between, 0xF8);
      planes[q][2 * i] = _mm512_permutexvar_epi8(both, PartOf(Tables::kEven, 0));
      planes[q][2 * i + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(both, 2), PartOf(Tables::kOdd, 0));
    });
  });
}
struct Iq3XxsCodes : PlaneCodes<Iq3XxsCodes, FourOfIndex, 62> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const __m512i words[] = {LoadWord(tile).v, LoadWord(tile + 4 * kTileRows).v};
    const __m512i signs = EvenSignsOf(FieldsOf<0, 7>(LoadWord(tile + 8 * kTileRows).v));
    ReadIq3<kGridIq3Xxs, kLevelsIq3Xxs, 0>(words, nullptr, signs, planes);
  }
};
struct Iq3SCodes : PlaneCodes<Iq3SCodes, FourOfIndex, 15> {
  static void Planes(const std::byte* tile, __m512i (&planes)[2][4]) {
    const __m512i words[] = {LoadWord(tile).v, LoadWord(tile + 4 * kTileRows).v};
    // Bit 3 of a byte is of the first word, bit 7 of the second.
    const __m512i top = FieldsOf<-3, 1>(LoadByte(tile + 12 * kTileRows).v);
    const __mmask64 high[] = {TopBits(_mm512_slli_epi16(top, 4)), TopBits(top)};
    ReadIq3<kGridIq3S, kLevelsIq3S, 1>(words, high, LoadWord(tile + 8 * kTileRows).v, planes);
  }
};

}  // namespace
}  // namespace ferry
