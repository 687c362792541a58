#pragma once

// The readers of scales: see readers_of_codes.h. Each is made of one entry of the scale plane, of the tile's row headers and of
// the codes of the entry's first tile, and puts the scale of tile kTile of the entry, and the minimum where the format has one,
// into At()'s arguments: one for each 16 columns where the format's step is 16, else one.
//
// Scales that are a whole number times d, so small that a code times it fits a byte, have kFolds: Number<kTile, kHalf>() is it.

#include "kernels/cpu/readers_of_codes.h"

namespace ferry {
namespace {

inline F32x16 Times(F32x16 d, I32x16 number) { return d * ToFloats(number); }

// An f16 a tile, or for the whole entry.
struct HalfScales {
  F32x16 d;
  HalfScales(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = d;
  }
};
// Also an f16 to be added: the negative of a minimum.
struct HalfScalesAndMins {
  F32x16 d, m;
  HalfScalesAndMins(const std::byte* entry, const std::byte*)
      : d(LoadHalf(entry)), m(F32x16::Zero() - LoadHalf(entry + 2 * kTileRows)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&min)[2]) const {
    scale[0] = d, min[0] = m;
  }
};
// Two E4M3 bytes. As halves of an f16 they are 2^-8 of their values, and codes beside them are doubled.
struct E4M3Scales {
  I32x16 both;
  E4M3Scales(const std::byte* entry, const std::byte*) : both(LoadShort(entry)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    const F32x16 factor = F32x16::Broadcast(128);
    scale[0] = HalvesToFloats(Shift<7>(BitsOf<0, 7>(both))) * factor;
    scale[1] = HalvesToFloats(Shift<7>(BitsOf<8, 7>(both))) * factor;
  }
};

// Q4_K, Q5_K: eight scales and minima of six bits in three words.
struct PackedScalesAndMins {
  F32x16 d, dmin;
  I32x16 scales[2], mins[2];  // four in the bytes of each
  PackedScalesAndMins(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)), dmin(LoadHalf(entry + 2 * kTileRows)) {
    const I32x16 a = LoadWord(entry + 4 * kTileRows), b = LoadWord(entry + 8 * kTileRows), c = LoadWord(entry + 12 * kTileRows);
    const I32x16 six = I32x16::BroadcastByte(63), four = I32x16::BroadcastByte(15), high = I32x16::BroadcastByte(48);
    scales[0] = a & six, scales[1] = OrAnd(c & four, Shift<-2>(a), high);
    mins[0] = b & six, mins[1] = OrAnd(Shift<-4>(c) & four, Shift<-2>(b), high);
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&min)[2]) const {
    scale[0] = Times(d, ByteOf<kTile % 4>(scales[kTile / 4]));
    min[0] = Times(dmin, ByteOf<kTile % 4>(mins[kTile / 4]));
  }
};

// Sixteen signed numbers in the bytes of four words, times d.
struct SixteenScales {
  F32x16 d;
  I32x16 scales[4];
  template <int kTile, int kHalf>
  I32x16 Number() const {
    return SignedByteOf<kTile % 2 * 2 + kHalf>(scales[kTile / 2]);
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = Times(d, Number<kTile, 0>()), scale[1] = Times(d, Number<kTile, 1>());
  }
};
// Q6_K: as they are, from byte kAt of a row's entry on.
template <int kAt>
struct ByteSixteenths : SixteenScales {
  ByteSixteenths(const std::byte* entry, const std::byte*) {
    d = LoadHalf(entry);
    for (int i = 0; i < 4; ++i) scales[i] = LoadWord(entry + (kAt + 4 * i) * kTileRows);
  }
};
// Q3_K: nibbles in two words, high pairs in a third, less 32.
struct PackedSixteenths : SixteenScales {
  static constexpr bool kFolds = true;
  PackedSixteenths(const std::byte* entry, const std::byte*) {
    d = LoadHalf(entry);
    const I32x16 low[2] = {LoadWord(entry + 2 * kTileRows), LoadWord(entry + 6 * kTileRows)};
    const I32x16 high = LoadWord(entry + 10 * kTileRows);
    const I32x16 four = I32x16::BroadcastByte(15), two = I32x16::BroadcastByte(48), zero = I32x16::BroadcastByte(32);
    Unroll<4>(
        [&]<int i>() { scales[i] = SubBytes(OrAnd(Shift<-4 * (i / 2)>(low[i % 2]) & four, Shift<4 - 2 * i>(high), two), zero); });
  }
};
// Q2_K: a nibble of scale and one of minimum for each 16 columns.
struct NibbleScalesAndMins {
  static constexpr bool kFolds = true;
  F32x16 d, dmin;
  I32x16 both[4];
  NibbleScalesAndMins(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)), dmin(LoadHalf(entry + 2 * kTileRows)) {
    for (int i = 0; i < 4; ++i) both[i] = LoadWord(entry + (4 + 4 * i) * kTileRows);
  }
  template <int kTile, int kHalf>
  I32x16 Number() const {
    return BitsOf<8 * (kTile % 2 * 2 + kHalf), 4>(both[kTile / 2]);
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&min)[2]) const {
    Unroll<2>([&]<int half>() {
      scale[half] = Times(d, Number<kTile, half>());
      min[half] = Times(dmin, BitsOf<8 * (kTile % 2 * 2 + half) + 4, 4>(both[kTile / 2]));
    });
  }
};

// IQ4_XS: high pairs and nibbles of eight scales, less 32.
struct Iq4XsScales {
  F32x16 d;
  I32x16 high, low;
  Iq4XsScales(const std::byte* entry, const std::byte*)
      : d(LoadHalf(entry)), high(LoadShort(entry + 2 * kTileRows)), low(LoadWord(entry + 4 * kTileRows)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    const I32x16 six = BitsOf<4 * kTile, 4>(low) | Shift<4>(BitsOf<2 * kTile, 2>(high));
    scale[0] = Times(d, six + I32x16::Broadcast(-32));
  }
};

inline I32x16 OddOf(I32x16 n) { return Shift<1>(n) | I32x16::Broadcast(1); }  // 2n + 1
// The scale (2n + 1) times kEighths / 8 of d.
template <int kEighths>
inline F32x16 OddTimes(F32x16 d, I32x16 n) {
  const F32x16 part = d * F32x16::Broadcast(static_cast<float>(kEighths) / 8);
  return Times(part, OddOf(n));
}
// IQ3_S: eight nibbles.
struct Iq3SScales {
  F32x16 d;
  I32x16 nibbles;
  Iq3SScales(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)), nibbles(LoadWord(entry + 2 * kTileRows)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = OddTimes<8>(d, BitsOf<4 * kTile, 4>(nibbles));
  }
};
// The nibble of a half of tile kTile, of sixteen in two words.
template <int kTile, int kHalf>
inline I32x16 NibbleOf(const I32x16 (&nibbles)[2]) {
  return BitsOf<8 * (kTile % 4) + 4 * kHalf, 4>(nibbles[kTile / 4]);
}
// IQ2_XS, IQ2_S: sixteen nibbles.
struct Iq2Scales {
  F32x16 d;
  I32x16 nibbles[2];
  Iq2Scales(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)) {
    nibbles[0] = LoadWord(entry + 2 * kTileRows), nibbles[1] = LoadWord(entry + 6 * kTileRows);
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = OddTimes<1>(d, NibbleOf<kTile, 0>(nibbles));
    scale[1] = OddTimes<1>(d, NibbleOf<kTile, 1>(nibbles));
  }
};
// IQ2_XXS, IQ3_XXS: the top four bits of the word of signs, kSignsAt bytes into a row's codes.
template <int kSignsAt, int kEighths>
struct ScalesBesideSigns {
  F32x16 d;
  ScalesBesideSigns(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)) {}
  template <int kTile>
  void At(const std::byte* codes, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = OddTimes<kEighths>(d, Shift<-28>(LoadWord(codes + kSignsAt * kTileRows)));
  }
};
// IQ1_S: three bits of the word beside the indices.
struct Iq1SScales {
  F32x16 d;
  Iq1SScales(const std::byte* entry, const std::byte*) : d(LoadHalf(entry)) {}
  template <int kTile>
  void At(const std::byte* codes, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    scale[0] = OddTimes<1>(d, BitsOf<12, 3>(LoadShort(codes + 4 * kTileRows)));
  }
};
// IQ1_M: four 16-bit words, of four scales of three bits each; their top nibbles are the f16.
struct Iq1MScales {
  F32x16 d;
  I32x16 words[2];
  Iq1MScales(const std::byte* entry, const std::byte*) {
    words[0] = LoadWord(entry), words[1] = LoadWord(entry + 4 * kTileRows);
    const I32x16 half = BitsOf<12, 4>(words[0]) | Shift<4>(BitsOf<28, 4>(words[0])) | Shift<8>(BitsOf<12, 4>(words[1])) |
                        Shift<12>(BitsOf<28, 4>(words[1]));
    d = HalvesToFloats(half);
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    constexpr int kAt = 16 * (kTile / 2 % 2) + 6 * (kTile % 2);
    scale[0] = OddTimes<1>(d, BitsOf<kAt, 3>(words[kTile / 4]));
    scale[1] = OddTimes<1>(d, BitsOf<kAt + 3, 3>(words[kTile / 4]));
  }
};

// ------------------------------------------------------------------------------------------------------- ik_llama.cpp's

// The K types: bit 2t + half of `extra` shifts the table of a half of tile t, and becomes a lane's top bit.
struct ShiftedSixteenths {
  I32x16 extra;
  template <int kTile>
  I32x16 Shifted(int half) const {
    return half == 0 ? Shift<31 - 2 * kTile>(extra) : Shift<30 - 2 * kTile>(extra);
  }
};
// Their scales: sixteen signed bytes, those of half h of tiles 4q to 4q + 3 in word 2q + h.
struct ScalesByHalf : ShiftedSixteenths {
  F32x16 d;
  I32x16 scales[4];
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    Unroll<2>([&]<int half>() { scale[half] = Times(d, SignedByteOf<kTile % 4>(scales[kTile / 4 * 2 + half])); });
  }
  // From two words of nibbles, the halves of a tile in one byte.
  void SetNibbles(const std::byte* field) {
    const I32x16 nibble = I32x16::BroadcastByte(15);
    for (int q = 0; q < 2; ++q) {
      const I32x16 word = LoadWord(field + 4 * q * kTileRows);
      scales[2 * q] = word & nibble, scales[2 * q + 1] = Shift<-4>(word) & nibble;
    }
  }
};
struct Iq2KScales : ScalesByHalf {
  Iq2KScales(const std::byte* entry, const std::byte*) {
    d = LoadHalf(entry), extra = LoadShort(entry + 2 * kTileRows);
    SetNibbles(entry + 4 * kTileRows);
    for (I32x16& four : scales) four = SubBytes(four, I32x16::BroadcastByte(8));
  }
};
struct Iq3KScales : ScalesByHalf {
  Iq3KScales(const std::byte* entry, const std::byte*) {
    d = LoadHalf(entry), extra = LoadShort(entry + 2 * kTileRows);
    const I32x16 negative = LoadShort(entry + 4 * kTileRows), one = I32x16::BroadcastByte(1);
    SetNibbles(entry + 6 * kTileRows);
    Unroll<4>([&]<int i>() {
      // 2n + 1, negated where bit 2 * tile + half is set.
      const I32x16 bits = I32x16::Broadcast(static_cast<int32_t>(0x40100401u << i % 2));
      const I32x16 mask = NonZeroBytes(SpreadByte(Shift<-8 * (i / 2)>(negative)) & bits);
      scales[i] = SubBytes((Shift<1>(scales[i]) | one) ^ mask, mask);
    });
  }
};
// IQ4_K, IQ5_K: nibbles, and high pairs in a word, less 32.
struct Iq4KScales : ScalesByHalf {
  Iq4KScales(const std::byte* entry, const std::byte*) {
    d = LoadHalf(entry), extra = LoadShort(entry + 2 * kTileRows);
    const I32x16 high = LoadWord(entry + 4 * kTileRows);
    SetNibbles(entry + 8 * kTileRows);
    Unroll<2>([&]<int q>() {
      // The two pairs of a tile, four bits, apart in bytes.
      const I32x16 sixteen = BitsOf<16 * q, 16>(high), bytes = (sixteen | Shift<8>(sixteen)) & I32x16::Broadcast(0x00FF00FF);
      const I32x16 pairs = bytes | Shift<4>(bytes), two = I32x16::BroadcastByte(48), zero = I32x16::BroadcastByte(32);
      scales[2 * q] = SubBytes(OrAnd(scales[2 * q], Shift<4>(pairs), two), zero);
      scales[2 * q + 1] = SubBytes(OrAnd(scales[2 * q + 1], Shift<2>(pairs), two), zero);
    });
  }
};
struct Iq6KScales : ByteSixteenths<4>, ShiftedSixteenths {
  Iq6KScales(const std::byte* entry, const std::byte* rows) : ByteSixteenths<4>(entry, rows) {
    extra = LoadShort(entry + 2 * kTileRows);
  }
};

// A byte for each tile beside the row's f32: seven bits of scale above one of shift.
struct RowByteScales {
  F32x16 d;
  I32x16 bytes[2];
  RowByteScales(const std::byte* entry, const std::byte* rows) : d(AsFloats(LoadWord(rows))) {
    bytes[0] = LoadWord(entry), bytes[1] = LoadWord(entry + 4 * kTileRows);
  }
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    const I32x16 even = ByteOf<kTile % 4>(bytes[kTile / 4]) & I32x16::Broadcast(254);
    scale[0] = Times(d, even + I32x16::Broadcast(-127));
  }
  template <int kTile>
  I32x16 Shifted(int) const {
    return Shift<31 - 8 * (kTile % 4)>(bytes[kTile / 4]);
  }
};

// IQ4_KSS: that byte is spread over the lowest bits of the eight 16-bit words of codes.
struct SpreadByteScales {
  F32x16 d;
  SpreadByteScales(const std::byte*, const std::byte* rows) : d(AsFloats(LoadWord(rows))) {}
  template <int kTile>
  void At(const std::byte* codes, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    I32x16 words[4];
    LoadWords(codes, words);
    I32x16 byte = I32x16::Broadcast(0);
    Unroll<4>([&]<int i>() {
      if constexpr (i > 0) byte = byte | Shift<2 * i>(BitsOf<0, 1>(words[i]));
      byte = byte | Shift<2 * i + 1>(BitsOf<16, 1>(words[i]));
    });
    scale[0] = Times(d, byte + I32x16::Broadcast(-127));
  }
};
// IQ2_KS, IQ3_KS: nibbles and fifth bits of scales, less 16, beside the row's f16.
struct Iq2KsScales {
  F32x16 d;
  I32x16 extra, nibbles;
  Iq2KsScales(const std::byte* entry, const std::byte* rows)
      : d(LoadHalf(rows)), extra(LoadShort(entry)), nibbles(LoadWord(entry + 2 * kTileRows)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    const I32x16 five = BitsOf<4 * kTile, 4>(nibbles) | Shift<4>(BitsOf<8 + kTile, 1>(extra));
    scale[0] = Times(d, five + I32x16::Broadcast(-16));
  }
  template <int kTile>
  I32x16 Shifted(int) const {
    return Shift<31 - kTile>(extra);
  }
};
struct Iq3KsScales {
  F32x16 d;
  I32x16 extra, nibbles;
  Iq3KsScales(const std::byte* entry, const std::byte* rows)
      : d(LoadHalf(rows)), extra(LoadShort(entry)), nibbles(LoadWord(entry + 2 * kTileRows)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    const I32x16 five = BitsOf<8 * (kTile % 4) + 4 * (kTile / 4), 4>(nibbles) | Shift<4>(BitsOf<kTile, 1>(extra));
    scale[0] = Times(d, five + I32x16::Broadcast(-16));
  }
  template <int kTile>
  I32x16 Shifted(int) const {
    return Shift<23 - kTile>(extra);
  }
};
// IQ2_KL: nibbles and high pairs, less 32.
struct Iq2KlScales {
  F32x16 d;
  I32x16 high, nibbles;
  Iq2KlScales(const std::byte* entry, const std::byte* rows)
      : d(LoadHalf(rows)), high(LoadShort(entry)), nibbles(LoadWord(entry + 2 * kTileRows)) {}
  template <int kTile>
  void At(const std::byte*, F32x16 (&scale)[2], F32x16 (&)[2]) const {
    const I32x16 six = BitsOf<8 * (kTile % 4) + 4 * (kTile / 4), 4>(nibbles) | Shift<4>(BitsOf<2 * kTile, 2>(high));
    scale[0] = Times(d, six + I32x16::Broadcast(-32));
  }
};

}  // namespace
}  // namespace ferry
