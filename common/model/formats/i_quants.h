#pragma once

// ggml's types of 256 columns whose codes are indices into a grid of vectors, of four numbers (IQ3) or eight (IQ2, IQ1), with a
// sign bit for each number (IQ3, IQ2) or a shift for each vector or block (IQ1). The grids: make_grids.py.

#include "common/model/formats/format.h"

namespace ferry {

#include "common/model/formats/iq_grids.inc"

// Seven sign bits of eight: the last one makes the number of negative signs even.
constexpr int EvenSigns(int seven) { return seven | (std::popcount(static_cast<unsigned>(seven)) & 1) << 7; }

// Puts `count` numbers of a grid's entry, signed by the bits of `signs`, into out.
template <typename Entry>
inline void PutSigned(Entry entry, int signs, int8_t* out) {
  for (size_t i = 0; i < sizeof(Entry); ++i) {
    const int value = static_cast<int8_t>(entry >> (8 * i));
    out[i] = static_cast<int8_t>(signs >> i & 1 ? -value : value);
  }
}
// Eight times an entry of -1, 0, 1, plus one or minus one: IQ1 shifts its numbers by an eighth.
inline void PutShifted(uint64_t entry, bool down, int8_t* out) {
  for (int i = 0; i < 8; ++i) out[i] = static_cast<int8_t>(8 * static_cast<int8_t>(entry >> (8 * i)) + (down ? -1 : 1));
}

// Code fields: four indices of a byte, then a word with seven signs for each and four bits of scale.
template <>
struct Format<DType::kIQ2_XXS> : FormatSizes<256, Fields<4, 4>, Fields<2>> {
  static constexpr std::string_view kName = "IQ2_XXS";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 43;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    for (int tile = 0; tile < kTiles; ++tile) move.Bytes(2 + 8 * tile, parts.codes[tile], 8);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    const uint32_t word = LoadAs<uint32_t>(codes + 4);
    for (int i = 0; i < 4; ++i) {
      PutSigned(kGridIq2Xxs[codes[i]], EvenSigns(static_cast<int>(word >> (7 * i) & 127)), out.codes + 8 * i);
    }
    out.SetScale(HalfAt(scales) * (0.5f + static_cast<float>(word >> 28)) * 0.25f);
  }
};

// The scale of each 16 columns is a nibble.
inline void SetNibbleScales(const uint8_t* scales, int tile, IntegerBlock& out) {
  for (int half = 0; half < 2; ++half) {
    out.scale[half] = HalfAt(scales) * (0.5f + static_cast<float>(scales[2 + tile] >> (4 * half) & 15)) * 0.25f;
  }
}

// Code field: four 16-bit words, nine bits of index and seven signs.
template <>
struct Format<DType::kIQ2_XS> : FormatSizes<256, Fields<4, 4>, Fields<2, 4, 4>> {
  static constexpr std::string_view kName = "IQ2_XS";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 43;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    move.Bytes(66, parts.scales[0] + 2, 8);
    for (int tile = 0; tile < kTiles; ++tile) move.Bytes(2 + 8 * tile, parts.codes[tile], 8);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < 4; ++i) {
      const int word = LoadAs<uint16_t>(codes + 2 * i);
      PutSigned(kGridIq2Xs[word & 511], EvenSigns(word >> 9), out.codes + 8 * i);
    }
    SetNibbleScales(scales, tile, out);
  }
};

// Code fields: four low bytes of indices, four bytes of signs, and their high pairs.
template <>
struct Format<DType::kIQ2_S> : FormatSizes<256, Fields<4, 4, 1>, Fields<2, 4, 4>> {
  static constexpr std::string_view kName = "IQ2_S";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 43;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    move.Bytes(74, parts.scales[0] + 2, 8);
    for (int tile = 0; tile < kTiles; ++tile) {
      move.Bytes(2 + 4 * tile, parts.codes[tile], 4);
      move.Bytes(34 + 4 * tile, parts.codes[tile] + 4, 4);
      move.Bytes(66 + tile, parts.codes[tile] + 8, 1);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < 4; ++i) {
      PutSigned(kGridIq2S[codes[i] | (codes[8] >> (2 * i) & 3) << 8], codes[4 + i], out.codes + 8 * i);
    }
    SetNibbleScales(scales, tile, out);
  }
};

// Code fields: eight indices of a byte, then a word with seven signs for each pair of them and four bits of scale.
template <>
struct Format<DType::kIQ3_XXS> : FormatSizes<256, Fields<4, 4, 4>, Fields<2>> {
  static constexpr std::string_view kName = "IQ3_XXS";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 62;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    for (int tile = 0; tile < kTiles; ++tile) {
      move.Bytes(2 + 8 * tile, parts.codes[tile], 8);
      move.Bytes(66 + 4 * tile, parts.codes[tile] + 8, 4);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    const uint32_t word = LoadAs<uint32_t>(codes + 8);
    for (int i = 0; i < 8; ++i) {
      const int signs = EvenSigns(static_cast<int>(word >> (7 * (i / 2)) & 127));
      PutSigned(kGridIq3Xxs[codes[i]], signs >> (4 * (i % 2)), out.codes + 4 * i);
    }
    out.SetScale(HalfAt(scales) * (0.5f + static_cast<float>(word >> 28)) * 0.5f);
  }
};

// Code fields: eight low bytes of indices, four bytes of signs, and their high bits. Scale fields: d, and eight nibbles.
template <>
struct Format<DType::kIQ3_S> : FormatSizes<256, Fields<4, 4, 4, 1>, Fields<2, 4>> {
  static constexpr std::string_view kName = "IQ3_S";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 15;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    move.Bytes(106, parts.scales[0] + 2, 4);
    for (int tile = 0; tile < kTiles; ++tile) {
      move.Bytes(2 + 8 * tile, parts.codes[tile], 8);
      move.Bytes(74 + 4 * tile, parts.codes[tile] + 8, 4);
      move.Bytes(66 + tile, parts.codes[tile] + 12, 1);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < 8; ++i) {
      PutSigned(kGridIq3S[codes[i] | (codes[12] >> i & 1) << 8], codes[8 + i / 2] >> (4 * (i % 2)), out.codes + 4 * i);
    }
    out.SetScale(HalfAt(scales) * static_cast<float>(1 + 2 * (scales[2 + tile / 2] >> (tile % 2 * 4) & 15)));
  }
};

// Code fields: four low bytes of indices, and a 16-bit word with three high bits of each, three bits of scale and the shift's
// sign.
template <>
struct Format<DType::kIQ1_S> : FormatSizes<256, Fields<4, 2>, Fields<2>> {
  static constexpr std::string_view kName = "IQ1_S";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 9;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    for (int tile = 0; tile < kTiles; ++tile) {
      move.Bytes(2 + 4 * tile, parts.codes[tile], 4);
      move.Bytes(34 + 2 * tile, parts.codes[tile] + 4, 2);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    const int word = LoadAs<uint16_t>(codes + 4);
    for (int i = 0; i < 4; ++i) {
      PutShifted(kGridIq1[codes[i] | (word >> (3 * i) & 7) << 8], word >> 15 != 0, out.codes + 8 * i);
    }
    out.SetScale(HalfAt(scales) * static_cast<float>(2 * (word >> 12 & 7) + 1) * 0.125f);
  }
};

// Code fields: four low bytes of indices, and a nibble for each: three high bits and the shift's sign. Scale fields: four 16-bit
// words as two words of four bytes: three bits for each 16 columns in the low twelve, and a quarter of the f16 scale in the top
// four.
template <>
struct Format<DType::kIQ1_M> : FormatSizes<256, Fields<4, 2>, Fields<4, 4>> {
  static constexpr std::string_view kName = "IQ1_M";
  static constexpr int kHalves = 0;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 9;

  static uint16_t ScaleOf(const uint8_t* scales) {
    int half = 0;
    for (int i = 0; i < 4; ++i) half |= LoadAs<uint16_t>(scales + 2 * i) >> 12 << (4 * i);
    return static_cast<uint16_t>(half);
  }
  static bool Finite(const uint8_t* scales) { return IsFiniteHalf(ScaleOf(scales)); }
  static void SetScale(uint8_t* block, float scale) {
    const int half = FloatToHalf(scale);
    for (int i = 0; i < 4; ++i) {
      const int low = LoadAs<uint16_t>(block + 48 + 2 * i) & 0xFFF;
      StoreAs(block + 48 + 2 * i, static_cast<uint16_t>(low | (half >> (4 * i) & 15) << 12));
    }
  }
  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(48, parts.scales[0], 8);
    for (int tile = 0; tile < kTiles; ++tile) {
      move.Bytes(4 * tile, parts.codes[tile], 4);
      move.Bytes(32 + 2 * tile, parts.codes[tile] + 4, 2);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    const int word = LoadAs<uint16_t>(codes + 4);
    for (int i = 0; i < 4; ++i) {
      const int nibble = word >> (4 * i);
      PutShifted(kGridIq1[codes[i] | (nibble & 7) << 8], (nibble & 8) != 0, out.codes + 8 * i);
    }
    const int packed = LoadAs<uint16_t>(scales + tile / 2 * 2) >> (tile % 2 * 6);
    for (int half = 0; half < 2; ++half) {
      out.scale[half] = HalfToFloat(ScaleOf(scales)) * static_cast<float>(2 * (packed >> (3 * half) & 7) + 1) * 0.125f;
    }
  }
};

}  // namespace ferry
