#pragma once

// What the fast kernels of number formats are composed of: readers of codes and readers of scales, written once over the lanes of
// int_simd_*.h (a lane is a row of the tile, a byte of it one of four neighbouring columns). A source of one instruction set
// includes its int_simd_*.h, then this. The meaning of every field: common/model/formats.
//
// A reader of codes fills w[g] with the codes of columns 4g to 4g + 3: unsigned numbers from which kZero is still to be
// subtracted, or, where kSigned, values that are kSignedBias too large (int_simd_*.h: what an instruction set's product wants).
// kMaxByte bounds the former, and the size of the latter.
//
// A reader of scales is made of an entry of the scale plane (and of the tile's row headers) and then asked for tiles 0 to 7 in
// turn.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/model/formats/formats.h"
#include "kernels/cpu/product_parts.h"

namespace ferry {
namespace {

// Calls f.operator()<i>() for i from 0 to kCount - 1.
template <int kCount, typename F>
inline void Unroll(const F& f) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) { (f.template operator()<kIndices>(), ...); }
  (std::make_integer_sequence<int, kCount>());
}

// Byte kByte of each lane, as a number.
template <int kByte>
inline I32x16 ByteOf(I32x16 a) {
  const I32x16 shifted = Shift<-8 * kByte>(a);
  if constexpr (kByte == 3) return shifted;
  return shifted & I32x16::Broadcast(255);
}
template <int kByte>
inline I32x16 SignedByteOf(I32x16 a) {
  return ShiftRightSigned<24>(Shift<24 - 8 * kByte>(a));
}
// Bits [kAt, kAt + kBits) of each lane.
template <int kAt, int kBits>
inline I32x16 BitsOf(I32x16 a) {
  return Shift<-kAt>(a) & I32x16::Broadcast((1 << kBits) - 1);
}

// ------------------------------------------------------------------------------------------------------------- codes

inline void ReadNibbles(const std::byte* field, I32x16 (&w)[kGroups]) {
  const I32x16 nibble = I32x16::BroadcastByte(15);
  I32x16 words[4];
  LoadWords(field, words);
  Unroll<4>([&]<int i>() { w[i] = words[i] & nibble, w[4 + i] = Shift<-4>(words[i]) & nibble; });
}
// With other bits above the four.
inline void ReadLooseNibbles(const std::byte* field, I32x16 (&w)[kGroups]) {
  I32x16 words[4];
  LoadWords(field, words);
  Unroll<4>([&]<int i>() { w[i] = words[i], w[4 + i] = Shift<-4>(words[i]); });
}
inline void ReadPairs(const std::byte* field, I32x16 (&w)[kGroups]) {
  const I32x16 pair = I32x16::BroadcastByte(3);
  I32x16 words[2];
  LoadWords(field, words);
  Unroll<kGroups>([&]<int g>() { w[g] = Shift<-2 * (g % 4)>(words[g / 4]) & pair; });
}
// Adds the pairs, or bits, of a field to codes, from bit kAt on.
template <int kAt>
inline void AddPairs(const std::byte* field, I32x16 (&w)[kGroups]) {
  const I32x16 pair = I32x16::BroadcastByte(3 << kAt);
  I32x16 words[2];
  LoadWords(field, words);
  Unroll<kGroups>([&]<int g>() { w[g] = OrAnd(w[g], Shift<kAt - 2 * (g % 4)>(words[g / 4]), pair); });
}
template <int kAt>
inline void AddBits(const std::byte* field, I32x16 (&w)[kGroups]) {
  const I32x16 bit = I32x16::BroadcastByte(1 << kAt), bits = LoadWord(field);
  Unroll<kGroups>([&]<int g>() { w[g] = OrAnd(w[g], Shift<kAt - g>(bits), bit); });
}

// The codes of kBits bits in one of the forms.
template <int kBits>
inline void ReadCodes(const std::byte* tile, I32x16 (&w)[kGroups]) {
  if constexpr (kBits == 2 || kBits == 3) {
    ReadPairs(tile, w);
    if constexpr (kBits == 3) AddBits<2>(tile + 8 * kTileRows, w);
  } else {
    ReadNibbles(tile, w);
    if constexpr (kBits == 5) AddBits<4>(tile + 16 * kTileRows, w);
    if constexpr (kBits == 6) AddPairs<4>(tile + 16 * kTileRows, w);
  }
}

// Numbers from 0 to 2^kBits - 1, less kZeroPoint.
template <int kBits, int kZeroPoint>
struct PlainCodes {
  static constexpr bool kSigned = false;
  static constexpr int kZero = kZeroPoint;
  static constexpr int kMaxByte = (1 << kBits) - 1;

  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    ReadCodes<kBits>(tile, w);
  }
};

// Where an instruction set multiplies unsigned codes with fewer instructions (kLargestUnsigned of int_simd_*.h), levels that are
// small enough are made unsigned: kZero too large.
template <int kLargest>
struct LevelCodes {
  static constexpr bool kSigned = kLargest > kLargestUnsigned;
  static constexpr int kZero = kSigned ? 0 : static_cast<int>(std::bit_ceil(static_cast<unsigned>(kLargest)));
  static constexpr int kMaxByte = kZero + kLargest;
  static constexpr int kBias = kSigned ? kSignedBias : kZero;
};
// A table's levels, repeated to at least 16 entries, with a bias.
template <const auto& kLevels, int kBias>
constexpr auto BiasedLevels() {
  constexpr size_t kEntries = kLevels.size() < 16 ? 16 : kLevels.size();
  std::array<int8_t, kEntries> levels{};
  for (size_t i = 0; i < kEntries; ++i) levels[i] = static_cast<int8_t>(kLevels[i % kLevels.size()] + kBias);
  return levels;
}

// Levels of a table; kShift is added where the scales' Shifted<kTile>(half) has a top bit of 1.
template <int kBits, const auto& kLevels, int kLargest, int kShift = 0>
struct TableCodes : LevelCodes<kLargest> {
  static constexpr int kEntries = static_cast<int>(kLevels.size());

  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales& scales, I32x16 (&w)[kGroups]) {
    if constexpr (kBits == 4) {
      ReadLooseNibbles(tile, w);
    } else {
      ReadCodes<kBits>(tile, w);
    }
    LookUp<kTile>(scales, w);
  }
  template <int kTile, typename Scales>
  static void LookUp(const Scales& scales, I32x16 (&w)[kGroups]) {
    static constexpr auto kBiased = BiasedLevels<kLevels, LevelCodes<kLargest>::kBias>();
    const ByteTable<static_cast<int>(kBiased.size())> table(kBiased.data());
    Unroll<kGroups>([&]<int g>() { w[g] = table[w[g]]; });
    if constexpr (kShift > 0) {
      Unroll<2>([&]<int half>() { AddWhere<kShift>(scales.template Shifted<kTile>(half), w + 4 * half); });
    }
  }
};

// IQ4_KSS: the nibbles are a Gray code of 15 bits above the lowest one of each 16.
struct GrayCodes : LevelCodes<128> {
  // The table's shift is the lowest bit of the first word.
  struct ShiftOfWord {
    I32x16 word;
    template <int kTile>
    I32x16 Shifted(int) const {
      return Shift<31>(word);
    }
  };

  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    I32x16 words[4];
    LoadWords(tile, words);
    Unroll<4>([&]<int i>() {
      const I32x16 gray = words[i] & I32x16::Broadcast(static_cast<int32_t>(0xFFFEFFFE));
      w[i] = gray ^ Shift<-1>(gray), w[4 + i] = Shift<-4>(w[i]);
    });
    TableCodes<4, kIq4Values, 128, kIq4Shift>::LookUp<kTile>(ShiftOfWord{words[0]}, w);
  }
};

// IQ2_KL: five bits encode two columns, a nibble in eight bytes and a bit in two.
template <int kShiftRight>
constexpr std::array<int8_t, 32> Iq2KlLevels() {
  std::array<int8_t, 32> levels{};
  for (size_t i = 0; i < levels.size(); ++i) levels[i] = static_cast<int8_t>(kIq2KlPairs[i] >> kShiftRight & 255);
  return levels;
}
struct Iq2KlCodes : LevelCodes<63> {
  static constexpr std::array<int8_t, 32> kFirst = Iq2KlLevels<0>(), kSecond = Iq2KlLevels<8>();

  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    static constexpr auto kBiasedFirst = BiasedLevels<kFirst, kBias>(), kBiasedSecond = BiasedLevels<kSecond, kBias>();
    const ByteTable<32> first(kBiasedFirst.data()), second(kBiasedSecond.data());
    const I32x16 even = I32x16::Broadcast(0x00FF00FF), odd = I32x16::Broadcast(static_cast<int32_t>(0xFF00FF00));
    I32x16 nibbles[2];
    LoadWords(tile, nibbles);
    const I32x16 bits = LoadShort(tile + 8 * kTileRows);
    Unroll<kGroups>([&]<int g>() {
      constexpr int kAt = 8 * (g % 4);
      const I32x16 left = BitsOf<kAt, 4>(nibbles[g / 4]) | Shift<4>(BitsOf<2 * g, 1>(bits));
      const I32x16 right = BitsOf<kAt + 4, 4>(nibbles[g / 4]) | Shift<4>(BitsOf<2 * g + 1, 1>(bits));
      const I32x16 apart = left | Shift<16>(right), index = apart | Shift<8>(apart);
      w[g] = (first[index] & even) | (second[index] & odd);
    });
  }
};

// The grids have readers of their own for each instruction set, of what this holds: readers_of_grids.h, grids_avx2.h,
// grids_avx512.h.
template <int kLargest>
struct GridCodes {
  static constexpr bool kSigned = true;
  static constexpr int kZero = 0;
  static constexpr int kMaxByte = kLargest;
};

}  // namespace
}  // namespace ferry
