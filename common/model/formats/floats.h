#pragma once

// F32, F16 and BF16: elements without codes and scales. A GGUF block is one element; 32 of them are tiled at once.

#include "common/model/formats/format.h"

namespace ferry {

template <typename Element>
struct FloatFormat : FormatSizes<1, Fields<kTileCols * sizeof(Element)>, Fields<>, kTileCols> {
  static constexpr bool kInteger = false;
  static constexpr bool kIsPlain = true;
  static constexpr int kHalves = 0;

  template <typename Mover, typename P>
  static void Move(const Mover& move, P& parts) {
    move.Bytes(0, parts.codes[0], FloatFormat::kCodeBytes);
  }
};

template <>
struct Format<DType::kF32> : FloatFormat<float> {
  static constexpr std::string_view kName = "F32";
  static void Values(const uint8_t* codes, const uint8_t*, const uint8_t*, int, float* out) {
    std::memcpy(out, codes, kCodeBytes);
  }
};

template <>
struct Format<DType::kF16> : FloatFormat<uint16_t> {
  static constexpr std::string_view kName = "F16";
  static void Values(const uint8_t* codes, const uint8_t*, const uint8_t*, int, float* out) {
    for (int i = 0; i < kTileCols; ++i) out[i] = HalfAt(codes + 2 * i);
  }
};

template <>
struct Format<DType::kBF16> : FloatFormat<uint16_t> {
  static constexpr std::string_view kName = "BF16";
  static void Values(const uint8_t* codes, const uint8_t*, const uint8_t*, int, float* out) {
    for (int i = 0; i < kTileCols; ++i) out[i] = BFloat16ToFloat(LoadAs<uint16_t>(codes + 2 * i));
  }
};

}  // namespace ferry
