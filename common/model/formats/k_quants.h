#pragma once

// Types of 256 columns with two levels of scales: an f16 for the block times a small whole number for each 16 or 32 columns
// (ggml's K quants), and the two of the same shape without such numbers (TQ2_0) or with levels from a table (IQ4_XS).

#include "common/model/formats/blocks_of_32.h"
#include "common/model/formats/format.h"

namespace ferry {

// Codes of one block of 256: sub-block t (of 32 columns) has its nibble at the same place of 32 successive bytes, two sub-blocks
// in each 32 bytes; so have pairs, four sub-blocks in each 32 bytes, and bits, all eight.
template <typename Mover>
inline void MoveNibbles(const Mover& move, int at, int tile, auto* part) {
  move.template Codes<4>(at + 32 * (tile / 2), 4 * (tile % 2), part);
}
template <typename Mover>
inline void MovePairs(const Mover& move, int at, int tile, auto* part) {
  move.template Codes<2>(at + 32 * (tile / 4), 2 * (tile % 4), part);
}
template <typename Mover>
inline void MoveBits(const Mover& move, int at, int tile, auto* part) {
  move.template Codes<1>(at, tile, part);
}

// Scale and minimum `i` of eight, six bits each, in twelve bytes.
inline int PackedScale(const uint8_t* packed, int i) {
  return i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
}
inline int PackedMin(const uint8_t* packed, int i) {
  return i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | packed[i] >> 6 << 4;
}

// Scale fields: d, dmin, and the twelve bytes as three words.
using ScalesAndMins = Fields<2, 2, 4, 4, 4>;
inline void SetScaleAndMin(const uint8_t* scales, int tile, IntegerBlock& out) {
  out.SetScale(HalfAt(scales) * static_cast<float>(PackedScale(scales + 4, tile)));
  out.SetMin(HalfAt(scales + 2) * static_cast<float>(PackedMin(scales + 4, tile)));
}

// The f16 at `d` times a whole number for each 16 columns.
template <typename NumberOf>
inline void SetHalves(const uint8_t* d, IntegerBlock& out, const NumberOf& number_of) {
  for (int half = 0; half < 2; ++half) out.scale[half] = HalfAt(d) * static_cast<float>(number_of(half));
}

template <>
struct Format<DType::kQ4_K> : FormatSizes<256, Fields<16>, ScalesAndMins> {
  static constexpr std::string_view kName = "Q4_K";
  static constexpr int kHalves = 2;
  static constexpr bool kMins = true;
  static constexpr int kLargestCode = 15;
  static constexpr int kScaleAt = 0, kMinAt = 2;
  static constexpr float kMinPerScale = 7.5f;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) MoveNibbles(move, 16, tile, parts.codes[tile]);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(NibbleAt(codes, i));
    SetScaleAndMin(scales, tile, out);
  }
};

template <>
struct Format<DType::kQ5_K> : FormatSizes<256, Fields<16, 4>, ScalesAndMins> {
  static constexpr std::string_view kName = "Q5_K";
  static constexpr int kHalves = 2;
  static constexpr bool kMins = true;
  static constexpr int kLargestCode = 31;
  static constexpr int kScaleAt = 0, kMinAt = 2;
  static constexpr float kMinPerScale = 15.5f;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) {
      MoveNibbles(move, 48, tile, parts.codes[tile]);
      MoveBits(move, 16, tile, parts.codes[tile] + 16);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(NibbleAt(codes, i) | BitAt(codes + 16, i) << 4);
    SetScaleAndMin(scales, tile, out);
  }
};

// Scale fields: d, and sixteen signed bytes as four words.
template <>
struct Format<DType::kQ6_K> : FormatSizes<256, Fields<16, 8>, Fields<2, 4, 4, 4, 4>> {
  static constexpr std::string_view kName = "Q6_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 32;
  static constexpr int kScaleAt = 208;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(208, parts.scales[0], 2);
    move.Bytes(192, parts.scales[0] + 2, 16);
    for (int tile = 0; tile < kTiles; ++tile) {
      // The low halves of 64 bytes are two sub-blocks, then their high halves are two.
      move.template Codes<4>(64 * (tile / 4) + 32 * (tile % 2), 4 * (tile / 2 % 2), parts.codes[tile]);
      MovePairs(move, 128, tile, parts.codes[tile] + 16);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) {
      out.codes[i] = static_cast<int8_t>((NibbleAt(codes, i) | PairAt(codes + 16, i) << 4) - 32);
    }
    SetHalves(scales, out, [&](int half) { return static_cast<int8_t>(scales[2 + 2 * tile + half]); });
  }
};

// Scale `i` of sixteen, six bits each in twelve bytes: four low bits in the first eight bytes, two high ones in the last four.
inline int PackedSixteenth(const uint8_t* packed, int i) {
  return (packed[i % 8] >> (i / 8 * 4) & 15) | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
}

// Scale fields: d, and the twelve bytes as three words.
template <>
struct Format<DType::kQ3_K> : FormatSizes<256, Fields<8, 4>, Fields<2, 4, 4, 4>> {
  static constexpr std::string_view kName = "Q3_K";
  static constexpr int kHalves = 1;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 4;
  static constexpr int kScaleAt = 108;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(108, parts.scales[0], 2);
    move.Bytes(96, parts.scales[0] + 2, 12);
    for (int tile = 0; tile < kTiles; ++tile) {
      MovePairs(move, 32, tile, parts.codes[tile]);
      MoveBits(move, 0, tile, parts.codes[tile] + 8);
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>((PairAt(codes, i) | BitAt(codes + 8, i) << 2) - 4);
    SetHalves(scales, out, [&](int half) { return PackedSixteenth(scales + 2, 2 * tile + half) - 32; });
  }
};

// Scale fields: d, dmin, and for each 16 columns a byte, scale in the low and minimum in the high half, as four words.
template <>
struct Format<DType::kQ2_K> : FormatSizes<256, Fields<8>, Fields<2, 2, 4, 4, 4, 4>> {
  static constexpr std::string_view kName = "Q2_K";
  static constexpr int kHalves = 2;
  static constexpr int kStep = 16;
  static constexpr bool kMins = true;
  static constexpr int kLargestCode = 3;
  static constexpr int kScaleAt = 80, kMinAt = 82;
  static constexpr float kMinPerScale = 1.5f;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(80, parts.scales[0], 4);
    move.Bytes(0, parts.scales[0] + 4, 16);
    for (int tile = 0; tile < kTiles; ++tile) MovePairs(move, 16, tile, parts.codes[tile]);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(PairAt(codes, i));
    for (int half = 0; half < 2; ++half) {
      const int both = scales[4 + 2 * tile + half];
      out.scale[half] = HalfAt(scales) * static_cast<float>(both & 15);
      out.min[half] = HalfAt(scales + 2) * static_cast<float>(both >> 4);
    }
  }
};

// One scale for all 256.
template <>
struct Format<DType::kTQ2_0> : FormatSizes<256, Fields<8>, Fields<2>> {
  static constexpr std::string_view kName = "TQ2_0";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 2;
  static constexpr int kScaleAt = 64;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(64, parts.scales[0], 2);
    for (int tile = 0; tile < kTiles; ++tile) MovePairs(move, 0, tile, parts.codes[tile]);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(PairAt(codes, i) - 1);
    out.SetScale(HalfAt(scales));
  }
};

// IQ4_NL's levels with a six-bit scale for each 32 columns. Scale fields: d, the scales' high pairs, their low nibbles.
template <>
struct Format<DType::kIQ4_XS> : FormatSizes<256, Fields<16>, Fields<2, 2, 4>> {
  static constexpr std::string_view kName = "IQ4_XS";
  static constexpr int kHalves = 1;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], kScaleBytes);
    for (int tile = 0; tile < kTiles; ++tile) move.Bytes(8 + 16 * tile, parts.codes[tile], 16);
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int tile, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = kIq4Values[NibbleAt(codes, i)];
    const int low = scales[4 + tile / 2] >> (tile % 2 * 4) & 15, high = LoadAs<uint16_t>(scales + 2) >> (2 * tile) & 3;
    out.SetScale(HalfAt(scales) * static_cast<float>((low | high << 4) - 32));
  }
};

}  // namespace ferry
