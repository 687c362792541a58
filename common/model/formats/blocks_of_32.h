#pragma once

// Types whose GGUF block is 32 columns (NVFP4: 64): a scale (and a minimum), then codes. Byte i of nibbles holds element i in its
// low and element i + 16 in its high half, which is the tiled form already.

#include <algorithm>
#include <cmath>

#include "common/model/formats/format.h"

namespace ferry {

// A block that is a scale and its codes, in this order, both kept as they are.
template <typename Sizes>
struct PlainBlock : Sizes {
  static constexpr bool kIsPlain = true;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], Sizes::kScaleBytes);
    move.Bytes(Sizes::kScaleBytes, parts.codes[0], Sizes::kCodeBytes);
  }
};

// 2^(s - 127) times E2M1 (OCP Microscaling Formats 1.0).
template <>
struct Format<DType::kMXFP4> : PlainBlock<FormatSizes<32, Fields<16>, Fields<1>>> {
  static constexpr std::string_view kName = "MXFP4";
  static constexpr int kHalves = 0;
  static constexpr int kLargestCode = 12;

  static bool Finite(const uint8_t* scales) { return scales[0] != 255; }
  static void SetScale(uint8_t* block, float scale) {
    block[0] = static_cast<uint8_t>(std::bit_cast<uint32_t>(std::abs(scale)) >> 23);
  }
  // Codes are doubled, so the scale is half of 2^(s - 127). |s - 128| is held to 64, as in every fast kernel, which keeps the
  // product with an activation's scale a normal number; weights beyond 2^-64 and 2^64 are no model's. Values() has no such
  // bounds.
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = kFp4Doubled[NibbleAt(codes, i)];
    const uint32_t exponent = static_cast<uint32_t>(std::clamp<int>(scales[0], 64, 192) - 1);
    out.SetScale(std::bit_cast<float>(exponent << 23));
  }
  static void Values(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, float* out) {
    const float factor = E8M0ToFloat(scales[0]);
    for (int i = 0; i < kTileCols; ++i) out[i] = kFp4Values[NibbleAt(codes, i)] * factor;
  }
};

template <>
struct Format<DType::kQ4_0> : PlainBlock<FormatSizes<32, Fields<16>, Fields<2>>> {
  static constexpr std::string_view kName = "Q4_0";
  static constexpr int kHalves = 1;
  static constexpr int kScaleAt = 0;
  static constexpr int kLargestCode = 8;

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(NibbleAt(codes, i) - 8);
    out.SetScale(HalfAt(scales));
  }
};

template <>
struct Format<DType::kQ8_0> : PlainBlock<FormatSizes<32, Fields<32>, Fields<2>>> {
  static constexpr std::string_view kName = "Q8_0";
  static constexpr int kHalves = 1;
  static constexpr int kScaleAt = 0;

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    std::memcpy(out.codes, codes, kTileCols);
    out.SetScale(HalfAt(scales));
  }
};

// value = scale * code + minimum.
template <>
struct Format<DType::kQ4_1> : PlainBlock<FormatSizes<32, Fields<16>, Fields<2, 2>>> {
  static constexpr std::string_view kName = "Q4_1";
  static constexpr int kHalves = 2;
  static constexpr bool kMins = true;
  static constexpr int kLargestCode = 15;
  static constexpr int kScaleAt = 0, kMinAt = 2;
  static constexpr float kMinPerScale = -7.5f;

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(NibbleAt(codes, i));
    out.SetScale(HalfAt(scales));
    out.SetMin(-HalfAt(scales + 2));
  }
};

// Nibbles and a fifth bit; bit i of the block's 32-bit word is that of element i.
template <typename Sizes>
struct FiveBits : Sizes {
  static constexpr int kBitsAt = Sizes::kScaleBytes;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], Sizes::kScaleBytes);
    move.Bytes(kBitsAt + 4, parts.codes[0], 16);
    move.template CodesAt<1>(parts.codes[0] + 16, [](int i) { return 8 * kBitsAt + i; });
  }
  static int CodeAt(const uint8_t* codes, int i) { return NibbleAt(codes, i) | BitAt(codes + 16, i) << 4; }
};

template <>
struct Format<DType::kQ5_0> : FiveBits<FormatSizes<32, Fields<16, 4>, Fields<2>>> {
  static constexpr std::string_view kName = "Q5_0";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 16;
  static constexpr int kScaleAt = 0;

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(CodeAt(codes, i) - 16);
    out.SetScale(HalfAt(scales));
  }
};

template <>
struct Format<DType::kQ5_1> : FiveBits<FormatSizes<32, Fields<16, 4>, Fields<2, 2>>> {
  static constexpr std::string_view kName = "Q5_1";
  static constexpr int kHalves = 2;
  static constexpr bool kMins = true;
  static constexpr int kLargestCode = 31;
  static constexpr int kScaleAt = 0, kMinAt = 2;
  static constexpr float kMinPerScale = -15.5f;

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = static_cast<int8_t>(CodeAt(codes, i));
    out.SetScale(HalfAt(scales));
    out.SetMin(-HalfAt(scales + 2));
  }
};

// ik_llama.cpp's: nibbles and two more bits of each element, of elements j, j + 16, j + 8 and j + 24 in byte j.
template <>
struct Format<DType::kQ6_0> : FormatSizes<32, Fields<16, 8>, Fields<2>> {
  static constexpr std::string_view kName = "Q6_0";
  static constexpr int kHalves = 1;
  static constexpr int kLargestCode = 32;
  static constexpr int kScaleAt = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.scales[0], 2);
    move.Bytes(10, parts.codes[0], 16);
    move.template CodesAt<2>(parts.codes[0] + 16, [](int i) { return 8 * (2 + i % 8) + 4 * (i / 8 % 2) + 2 * (i / 16); });
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) {
      out.codes[i] = static_cast<int8_t>((NibbleAt(codes, i) | PairAt(codes + 16, i) << 4) - 32);
    }
    out.SetScale(HalfAt(scales));
  }
};

// The levels of ggml's non-linear 4-bit types.
inline constexpr std::array<int8_t, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

template <>
struct Format<DType::kIQ4_NL> : PlainBlock<FormatSizes<32, Fields<16>, Fields<2>>> {
  static constexpr std::string_view kName = "IQ4_NL";
  static constexpr int kHalves = 1;
  static constexpr int kScaleAt = 0;

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = kIq4Values[NibbleAt(codes, i)];
    out.SetScale(HalfAt(scales));
  }
};

// E4M3 without a sign, halved, since the E2M1 codes beside it are doubled; 0x7F, which would be NaN, counts as 0.
constexpr float HalfOfE4M3(uint8_t scale) {
  if (scale == 0 || scale == 0x7F) return 0;
  const int exponent = scale >> 3 & 15, mantissa = scale & 7;
  if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
  return (1.0f + static_cast<float>(mantissa) / 8) * std::bit_cast<float>(static_cast<uint32_t>(exponent + 119) << 23);
}

// A GGUF block is 64 columns: four scales, then nibbles of 16 columns in 8 bytes, element j + 8 in the high half of byte j.
template <>
struct Format<DType::kNVFP4> : FormatSizes<64, Fields<16>, Fields<2>, 32> {
  static constexpr std::string_view kName = "NVFP4";
  static constexpr int kHalves = 0;
  static constexpr int kStep = 16;
  static constexpr int kLargestCode = 12;

  static bool Finite(const uint8_t* scales) { return (scales[0] & 0x7F) != 0x7F && (scales[1] & 0x7F) != 0x7F; }
  // Near the size of `scale`; E4M3 has eight steps below 2^-6.
  static void SetScale(uint8_t* block, float scale) {
    const float size = std::abs(scale);
    int exponent = 1;
    for (float least = 0x1p-6f; exponent < 14 && least * 1.5f < size; least *= 2) ++exponent;
    const int step = std::clamp(static_cast<int>(size * 512 + 0.5f), 1, 7);
    for (int i = 0; i < 4; ++i) block[i] = static_cast<uint8_t>(size < 0x1p-6f ? step : exponent << 3 | (block[i] & 7));
  }
  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    for (int tile = 0; tile < 2; ++tile) {
      move.Bytes(2 * tile, parts.scales[tile], 2);
      move.template CodesAt<4>(parts.codes[tile],
                               [&](int i) { return 8 * (4 + 16 * tile + 8 * (i / 16) + i % 8) + 4 * (i / 8 % 2); });
    }
  }
  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    for (int i = 0; i < kTileCols; ++i) out.codes[i] = kFp4Doubled[NibbleAt(codes, i)];
    out.scale[0] = HalfOfE4M3(scales[0]), out.scale[1] = HalfOfE4M3(scales[1]);
  }
};

}  // namespace ferry
