#pragma once

// Types whose GGUF block is 32 columns: a scale (and a minimum), then codes. Byte i of nibbles holds element i in its low
// and element i + 16 in its high half, which is the tiled form already.

#include <algorithm>

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
  // Codes are doubled, so the scale is half of 2^(s - 127). |s - 128| is held to 64, as in every fast kernel, which keeps the
  // product with an activation's scale a normal number; weights beyond 2^-64 and 2^64 are no model's. Values() has no such bounds.
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

  static void Block(const uint8_t* codes, const uint8_t* scales, const uint8_t*, int, IntegerBlock& out) {
    std::memcpy(out.codes, codes, kTileCols);
    out.SetScale(HalfAt(scales));
  }
};

}  // namespace ferry
