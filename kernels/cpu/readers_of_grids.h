#pragma once

// The readers of codes that are indices into a grid, over Gather of int_simd_neon.h: see readers_of_codes.h. AVX2 and AVX-512
// have readers of the same names of their own (grids_avx2.h, grids_avx512.h).

#include "kernels/cpu/readers_of_codes.h"

namespace ferry {
namespace {

// Negates the bytes of w[0] and w[1] whose bit of `signs`, eight in the low byte of each lane, is set.
inline void ApplySigns(I32x16 signs, I32x16* w) {
  const I32x16 spread = SpreadByte(signs);
  const I32x16 low = NonZeroBytes(spread & I32x16::Broadcast(0x08040201));
  const I32x16 high = NonZeroBytes(spread & I32x16::Broadcast(static_cast<int32_t>(0x80402010)));
  const I32x16 bias = I32x16::BroadcastByte(kSignedBias);
  w[0] = AddBytes(SubBytes(w[0] ^ low, low), bias);
  w[1] = AddBytes(SubBytes(w[1] ^ high, high), bias);
}
// Eight signs of seven bits: the eighth makes their number even.
inline I32x16 EvenSignsOf(I32x16 seven) {
  I32x16 parity = seven ^ Shift<-4>(seven);
  parity = parity ^ Shift<-2>(parity);
  parity = (parity ^ Shift<-1>(parity)) & I32x16::Broadcast(1);
  return seven | Shift<7>(parity);
}

// A grid of eight numbers, by its two words.
inline void ReadEight(const uint64_t* grid, I32x16 indices, I32x16* w) {
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(grid);
  w[0] = Gather<2>(words, indices), w[1] = Gather<2>(words + 1, indices);
}

struct Iq2XxsCodes : GridCodes<43> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 indices = LoadWord(tile), signs = LoadWord(tile + 4 * kTileRows);
    Unroll<4>([&]<int i>() {
      ReadEight(kGridIq2Xxs, ByteOf<i>(indices), w + 2 * i);
      ApplySigns(EvenSignsOf(BitsOf<7 * i, 7>(signs)), w + 2 * i);
    });
  }
};
struct Iq2XsCodes : GridCodes<43> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 words[2] = {LoadWord(tile), LoadWord(tile + 4 * kTileRows)};
    Unroll<4>([&]<int i>() {
      ReadEight(kGridIq2Xs, BitsOf<16 * (i % 2), 9>(words[i / 2]), w + 2 * i);
      ApplySigns(EvenSignsOf(BitsOf<16 * (i % 2) + 9, 7>(words[i / 2])), w + 2 * i);
    });
  }
};
struct Iq2SCodes : GridCodes<43> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 low = LoadWord(tile), signs = LoadWord(tile + 4 * kTileRows), high = LoadByte(tile + 8 * kTileRows);
    Unroll<4>([&]<int i>() {
      ReadEight(kGridIq2S, ByteOf<i>(low) | Shift<8>(BitsOf<2 * i, 2>(high)), w + 2 * i);
      ApplySigns(ByteOf<i>(signs), w + 2 * i);
    });
  }
};
struct Iq3XxsCodes : GridCodes<62> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 indices[2] = {LoadWord(tile), LoadWord(tile + 4 * kTileRows)}, signs = LoadWord(tile + 8 * kTileRows);
    Unroll<4>([&]<int i>() {
      w[2 * i] = Gather<1>(kGridIq3Xxs, ByteOf<2 * i % 4>(indices[i / 2]));
      w[2 * i + 1] = Gather<1>(kGridIq3Xxs, ByteOf<2 * i % 4 + 1>(indices[i / 2]));
      ApplySigns(EvenSignsOf(BitsOf<7 * i, 7>(signs)), w + 2 * i);
    });
  }
};
struct Iq3SCodes : GridCodes<15> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 low[2] = {LoadWord(tile), LoadWord(tile + 4 * kTileRows)}, signs = LoadWord(tile + 8 * kTileRows);
    const I32x16 high = LoadByte(tile + 12 * kTileRows), bit = I32x16::Broadcast(256);
    Unroll<4>([&]<int i>() {
      w[2 * i] = Gather<1>(kGridIq3S, ByteOf<2 * i % 4>(low[i / 2]) | (Shift<8 - 2 * i>(high) & bit));
      w[2 * i + 1] = Gather<1>(kGridIq3S, ByteOf<2 * i % 4 + 1>(low[i / 2]) | (Shift<7 - 2 * i>(high) & bit));
      ApplySigns(ByteOf<i>(signs), w + 2 * i);
    });
  }
};

// Eight times -1, 0 or 1, plus one, or minus one where `down`, the lowest bit of each lane, is set.
inline void ReadShifted(I32x16 indices, I32x16 down, I32x16* w) {
  ReadEight(kGridIq1, indices, w);
  const I32x16 eights = I32x16::BroadcastByte(0xF8), one = I32x16::BroadcastByte(1);
  const I32x16 step = NonZeroBytes(SpreadByte(down & I32x16::Broadcast(1))) | one;
  const I32x16 shift = AddBytes(step, I32x16::BroadcastByte(kSignedBias));
  for (int i = 0; i < 2; ++i) w[i] = AddBytes(Shift<3>(w[i]) & eights, shift);
}
struct Iq1SCodes : GridCodes<9> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 low = LoadWord(tile), word = LoadShort(tile + 4 * kTileRows), down = Shift<-15>(word);
    Unroll<4>([&]<int i>() { ReadShifted(ByteOf<i>(low) | Shift<8>(BitsOf<3 * i, 3>(word)), down, w + 2 * i); });
  }
};
struct Iq1MCodes : GridCodes<9> {
  template <int kTile, typename Scales>
  static void Read(const std::byte* tile, const Scales&, I32x16 (&w)[kGroups]) {
    const I32x16 low = LoadWord(tile), word = LoadShort(tile + 4 * kTileRows);
    Unroll<4>(
        [&]<int i>() { ReadShifted(ByteOf<i>(low) | Shift<8>(BitsOf<4 * i, 3>(word)), Shift<-(4 * i + 3)>(word), w + 2 * i); });
  }
};

}  // namespace
}  // namespace ferry
