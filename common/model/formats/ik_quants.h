#pragma once

// ik_llama.cpp's types of 256 columns: codes are levels of a table, which a bit for each 16 or 32 columns shifts up as a whole
// (`extra` below). The K types have an f16 for the block and a small whole number for each 16 columns; the KS, KSS and KL types
// have one scale for the whole row, before its blocks, and a small number for each 32 columns. The levels are facts of the
// formats (github.com/ikawrakow/ik_llama.cpp, MIT licence).

#include "common/model/formats/k_quants.h"

namespace ferry {

inline constexpr std::array<int8_t, 4> kIq2Values = {-31, -13, 1, 17};
inline constexpr std::array<int8_t, 8> kIq3Values = {-63, -40, -23, -10, 1, 13, 28, 47};
inline constexpr std::array<int8_t, 32> kIq5Values = {-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36,
                                                      -30,  -24,  -18,  -12, -6,  -1,  5,   11,  17,  23,  29,
                                                      36,   43,   51,   59,  68,  77,  87,  97,  109, 121};
// The nearest whole numbers to the levels of IQ6_K, which are values of a polynomial.
inline constexpr std::array<int8_t, 64> kIq6Values = {
    -127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54, -51, -47, -44, -40, -37, -34,
    -31,  -28,  -25,  -22,  -19,  -16, -13, -11, -8,  -5,  -2,  0,   3,   6,   9,   12,  14,  17,  20,  23,  27,  30,
    33,   36,   40,   44,   47,   51,  55,  59,  63,  68,  72,  77,  82,  87,  92,  98,  103, 109, 115, 121};
// IQ2_KL: two numbers for each index, the first one in the low byte.
inline constexpr std::array<uint16_t, 32> kIq2KlPairs = {0xe9c1, 0x0dc1, 0xc1d8, 0xf6d8, 0x0dd8, 0x2fd8, 0xd8e9, 0xe9e9,
                                                         0x01e9, 0x0de9, 0x1ce9, 0xc1f6, 0x01f6, 0x0df6, 0x2ff6, 0xe901,
                                                         0xf601, 0x0101, 0x0d01, 0x1c01, 0xd80d, 0xe90d, 0xf60d, 0x010d,
                                                         0x0d0d, 0xc11c, 0xe91c, 0x011c, 0x1c1c, 0x2f1c, 0xe92f, 0x0d2f};
inline constexpr int kIq2Shift = 5, kIq3Shift = 4, kIq4Shift = 4, kIq5Shift = 2, kIq6Shift = 1;

// Scale `i` of sixteen, six bits each: a nibble of `low` and a pair of `high`.
inline int SplitSixteenth(const uint8_t* low, const uint8_t* high, int i) {
  return ((low[i / 2] >> (4 * (i % 2)) & 15) | (high[i / 4] >> (2 * (i % 4)) & 3) << 4) - 32;
}

// Column i has level code_at(i) of the table, shifted where bit i / 16 of `extra` is set.
template <size_t kLevels, typename CodeAt>
inline void SetLevels(const std::array<int8_t, kLevels>& levels, int shift, int extra, const CodeAt& code_at, IntegerBlock& out) {
  for (int i = 0; i < kTileCols; ++i) {
    out.codes[i] = static_cast<int8_t>(levels[code_at(i)] + (extra >> (i / 16) & 1) * shift);
  }
}
// The bits of a tile's two halves of 16 columns in the extra of a K type.
inline int ExtraOfTile(const uint8_t* scales, int tile) { return LoadAs<uint16_t>(scales + 2) >> (2 * tile); }
// The bits of both halves from the one bit that a KS, KSS or KL type has for 32 columns.
inline int ExtraOfBit(int bit) { return (bit & 1) * 3; }

// Scale fields of the K types: d, the bits of extra, then those of each type.
template <>
struct Format<DType::kIQ2_K> : FormatSizes<256, Fields<8>, Fields<2, 2, 4, 4>> {
  static constexpr std::string_view kName = "IQ2_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 31;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) MovePairs(move, 12, tile, parts.codes[tile]);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return PairAt(codes, i); };
    SetLevels(kIq2Values, kIq2Shift, ExtraOfTile(scales, tile), code_at, out);
    SetHalves(scales, out, [&](int half) { return (scales[4 + tile] >> (4 * half) & 15) - 8; });
  }
};

template <>
struct Format<DType::kIQ3_K> : FormatSizes<256, Fields<8, 4>, Fields<2, 2, 2, 4, 4>> {
  static constexpr std::string_view kName = "IQ3_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 63;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) {
      MovePairs(move, 14, tile, parts.codes[tile]);
      MoveBits(move, 78, tile, parts.codes[tile] + 8);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return PairAt(codes, i) | BitAt(codes + 8, i) << 2; };
    SetLevels(kIq3Values, kIq3Shift, ExtraOfTile(scales, tile), code_at, out);
    const int negative = LoadAs<uint16_t>(scales + 4) >> (2 * tile);
    SetHalves(scales, out, [&](int half) {
      const int size = 2 * (scales[6 + tile] >> (4 * half) & 15) + 1;
      return negative >> half & 1 ? -size : size;
    });
  }
};

template <>
struct Format<DType::kIQ4_K> : FormatSizes<256, Fields<16>, Fields<2, 2, 4, 4, 4>> {
  static constexpr std::string_view kName = "IQ4_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) move.Bytes(16 + 16 * tile, parts.codes[tile], 16);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return NibbleAt(codes, i); };
    SetLevels(kIq4Values, kIq4Shift, ExtraOfTile(scales, tile), code_at, out);
    SetHalves(scales, out, [&](int half) { return SplitSixteenth(scales + 8, scales + 4, 2 * tile + half); });
  }
};

template <>
struct Format<DType::kIQ5_K> : FormatSizes<256, Fields<16, 4>, Fields<2, 2, 4, 4, 4>> {
  static constexpr std::string_view kName = "IQ5_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) {
      MoveNibbles(move, 16, tile, parts.codes[tile]);
      MoveBits(move, 144, tile, parts.codes[tile] + 16);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return NibbleAt(codes, i) | BitAt(codes + 16, i) << 4; };
    SetLevels(kIq5Values, kIq5Shift, ExtraOfTile(scales, tile), code_at, out);
    SetHalves(scales, out, [&](int half) { return SplitSixteenth(scales + 8, scales + 4, 2 * tile + half); });
  }
};

// Scale fields: d, extra, and sixteen signed bytes as four words.
template <>
struct Format<DType::kIQ6_K> : FormatSizes<256, Fields<16, 8>, Fields<2, 2, 4, 4, 4, 4>> {
  static constexpr std::string_view kName = "IQ6_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) {
      MoveNibbles(move, 20, tile, parts.codes[tile]);
      MovePairs(move, 148, tile, parts.codes[tile] + 16);
    }
  }
  static int CodeAt(const uint8_t* codes, int i) { return NibbleAt(codes, i) | PairAt(codes + 16, i) << 4; }
  static float ScaleAt(const uint8_t* scales, int i) {
    return HalfAt(scales) * static_cast<float>(static_cast<int8_t>(scales[4 + i]));
  }
  // Levels rounded to whole numbers, as fast kernels have them: at most half a 127th of the largest one away.
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return CodeAt(codes, i); };
    SetLevels(kIq6Values, kIq6Shift, ExtraOfTile(scales, tile), code_at, out);
    for (int half = 0; half < 2; ++half) out.scale[half] = ScaleAt(scales, 2 * tile + half);
  }
  static void Values(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, float* out) {
    const int extra = ExtraOfTile(scales, tile);
    for (int i = 0; i < kTileCols; ++i) {
      const float code = static_cast<float>(CodeAt(codes, i));
      const float level = -127.0f + code * (6.2568f + code * (-0.11218f + code * 0.0011972f));
      out[i] = ScaleAt(scales, 2 * tile + i / 16) * (level + static_cast<float>((extra >> (i / 16) & 1) * kIq6Shift));
    }
  }
};

// ------------------------------------------------------------------------------------------------- one scale for a row

// The scale of the row as an f32, and for each 32 columns a byte: seven bits of scale and, in the lowest one, the table's shift.
struct ByteScales {
  static void Set(const uint8_t* row, int byte, IntegerBlock& out) {
    out.SetScale(LoadAs<float>(row) * static_cast<float>((byte & 254) - 127));
  }
};

template <>
struct Format<DType::kIQ4_KS> : FormatSizes<256, Fields<16>, Fields<4, 4>, 256, 4> {
  static constexpr std::string_view kName = "IQ4_KS";
  static constexpr int kHalves = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 8);
    for (int tile = 0; tile < kTiles; ++tile) move.Bytes(8 + 16 * tile, parts.codes[tile], 16);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t* row, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return NibbleAt(codes, i); };
    SetLevels(kIq4Values, kIq4Shift, ExtraOfBit(scales[tile]), code_at, out);
    ByteScales::Set(row, scales[tile], out);
  }
};

// The byte of scale is spread over the lowest bits of the eight 16-bit words of codes, whose other bits are a Gray code.
template <>
struct Format<DType::kIQ4_KSS> : FormatSizes<256, Fields<16>, Fields<>, 256, 4> {
  static constexpr std::string_view kName = "IQ4_KSS";
  static constexpr int kHalves = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    for (int tile = 0; tile < kTiles; ++tile) move.Bytes(16 * tile, parts.codes[tile], 16);
  }
  static void Block(const uint8_t* codes, const uint8_t*, const uint8_t* row, int, IntegerBlock& out) {
    uint8_t nibbles[16];
    int byte = 0;
    for (int i = 0; i < 8; ++i) {
      const int word = LoadAs<uint16_t>(codes + 2 * i), gray = word & 0xFFFE;
      StoreAs(nibbles + 2 * i, static_cast<uint16_t>(gray ^ gray >> 1));
      byte |= (word & 1) << i;
    }
    const auto code_at = [&](int i) { return NibbleAt(nibbles, i); };
    SetLevels(kIq4Values, kIq4Shift, ExtraOfBit(byte), code_at, out);
    ByteScales::Set(row, byte, out);
  }
};

template <>
struct Format<DType::kIQ5_KS> : FormatSizes<256, Fields<16, 4>, Fields<4, 4>, 256, 4> {
  static constexpr std::string_view kName = "IQ5_KS";
  static constexpr int kHalves = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 8);
    for (int tile = 0; tile < kTiles; ++tile) {
      MoveNibbles(move, 8, tile, parts.codes[tile]);
      MoveBits(move, 136, tile, parts.codes[tile] + 16);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t* row, int tile, IntegerBlock& out) {
    const auto code_at = [&](int i) { return NibbleAt(codes, i) | BitAt(codes + 16, i) << 4; };
    SetLevels(kIq5Values, kIq5Shift, ExtraOfBit(scales[tile]), code_at, out);
    ByteScales::Set(row, scales[tile], out);
  }
};

// Scale fields: 16 bits, the fifth bits of the scales in one half and the tables' shifts in the other; eight nibbles of scales.
template <>
struct Format<DType::kIQ2_KS> : FormatSizes<256, Fields<8>, Fields<2, 4>, 256, 2> {
  static constexpr std::string_view kName = "IQ2_KS";
  static constexpr int kHalves = 0;
  static constexpr int kLargestCode = 31;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 6);
    for (int tile = 0; tile < kTiles; ++tile) MovePairs(move, 6, tile, parts.codes[tile]);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t* row, int tile, IntegerBlock& out) {
    const int extra = LoadAs<uint16_t>(scales) >> tile;
    const auto code_at = [&](int i) { return PairAt(codes, i); };
    SetLevels(kIq2Values, kIq2Shift, ExtraOfBit(extra), code_at, out);
    const int scale = (scales[2 + tile / 2] >> (4 * (tile % 2)) & 15) | (extra >> 8 & 1) << 4;
    out.SetScale(HalfAt(row) * static_cast<float>(scale - 16));
  }
};

// The same two halves the other way round; nibble i of the scales' bytes 0 to 3 is that of 32-block i or i + 4.
template <>
struct Format<DType::kIQ3_KS> : FormatSizes<256, Fields<8, 4>, Fields<2, 4>, 256, 2> {
  static constexpr std::string_view kName = "IQ3_KS";
  static constexpr int kHalves = 0;
  static constexpr int kLargestCode = 63;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 6);
    for (int tile = 0; tile < kTiles; ++tile) {
      MovePairs(move, 6, tile, parts.codes[tile]);
      MoveBits(move, 70, tile, parts.codes[tile] + 8);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t* row, int tile, IntegerBlock& out) {
    const int extra = LoadAs<uint16_t>(scales) >> tile;
    const auto code_at = [&](int i) { return PairAt(codes, i) | BitAt(codes + 8, i) << 2; };
    SetLevels(kIq3Values, kIq3Shift, ExtraOfBit(extra >> 8), code_at, out);
    const int scale = (scales[2 + tile % 4] >> (4 * (tile / 4)) & 15) | (extra & 1) << 4;
    out.SetScale(HalfAt(row) * static_cast<float>(scale - 16));
  }
};

// An index of five bits encodes two neighbouring columns. Code fields: sixteen nibbles, element 2j in the low and 2j + 1 in
// the high half of byte j, then their fifth bits, element j in bit j. Scale fields: high pairs of the scales, their nibbles.
template <>
struct Format<DType::kIQ2_KL> : FormatSizes<256, Fields<8, 2>, Fields<2, 4>, 256, 2> {
  static constexpr std::string_view kName = "IQ2_KL";
  static constexpr int kHalves = 0;
  static constexpr int kLargestCode = 63;

  // Index j of 32-block t: a nibble of byte j of the sixteen bytes for each 64 columns, and bit t of byte j of the high bits.
  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 6);
    for (int tile = 0; tile < kTiles; ++tile) {
      for (int j = 0; j < 16; ++j) {
        move.Bits(8 * (6 + 16 * (tile / 2) + j) + 4 * (tile % 2), 4, parts.codes[tile], 4 * j);
        move.Bits(8 * (70 + j) + tile, 1, parts.codes[tile] + 8, j);
      }
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t* row, int tile, IntegerBlock& out) {
    const int high = LoadAs<uint16_t>(codes + 8);
    for (int j = 0; j < 16; ++j) {
      const int index = (codes[j / 2] >> (4 * (j % 2)) & 15) | (high >> j & 1) << 4;
      StoreAs(reinterpret_cast<uint8_t*>(out.codes) + 2 * j, kIq2KlPairs[index]);
    }
    const int low = scales[2 + tile % 4] >> (4 * (tile / 4)) & 15, pair = LoadAs<uint16_t>(scales) >> (2 * tile) & 3;
    out.SetScale(HalfAt(row) * static_cast<float>((low | pair << 4) - 32));
  }
};

}  // namespace ferry
