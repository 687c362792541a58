#pragma once

// Which readers each number format is made of. A source of one instruction set includes its int_simd_*.h and its readers of grids
// first.

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/readers_of_codes.h"
#include "kernels/cpu/readers_of_scales.h"

namespace ferry {
namespace {

template <typename CodesReader, typename ScalesReader>
struct Readers {
  using Codes = CodesReader;
  using Scales = ScalesReader;
};

template <DType kType>
struct ReadersOf;

// Blocks of 32.
template <>
struct ReadersOf<DType::kQ4_1> : Readers<PlainCodes<4, 0>, HalfScalesAndMins> {};
template <>
struct ReadersOf<DType::kQ5_0> : Readers<PlainCodes<5, 16>, HalfScales> {};
template <>
struct ReadersOf<DType::kQ5_1> : Readers<PlainCodes<5, 0>, HalfScalesAndMins> {};
template <>
struct ReadersOf<DType::kQ6_0> : Readers<PlainCodes<6, 32>, HalfScales> {};
template <>
struct ReadersOf<DType::kIQ4_NL> : Readers<TableCodes<4, kIq4Values, 128>, HalfScales> {};
template <>
struct ReadersOf<DType::kNVFP4> : Readers<TableCodes<4, kFp4Doubled, 12>, E4M3Scales> {};
// Blocks of 256.
template <>
struct ReadersOf<DType::kQ2_K> : Readers<PlainCodes<2, 0>, NibbleScalesAndMins> {};
template <>
struct ReadersOf<DType::kQ3_K> : Readers<PlainCodes<3, 4>, PackedSixteenths> {};
template <>
struct ReadersOf<DType::kQ4_K> : Readers<PlainCodes<4, 0>, PackedScalesAndMins> {};
template <>
struct ReadersOf<DType::kQ5_K> : Readers<PlainCodes<5, 0>, PackedScalesAndMins> {};
template <>
struct ReadersOf<DType::kQ6_K> : Readers<PlainCodes<6, 32>, ByteSixteenths<2>> {};
template <>
struct ReadersOf<DType::kIQ4_XS> : Readers<TableCodes<4, kIq4Values, 128>, Iq4XsScales> {};
template <>
struct ReadersOf<DType::kTQ2_0> : Readers<PlainCodes<2, 1>, HalfScales> {};
// Grids.
template <>
struct ReadersOf<DType::kIQ1_S> : Readers<Iq1SCodes, Iq1SScales> {};
template <>
struct ReadersOf<DType::kIQ1_M> : Readers<Iq1MCodes, Iq1MScales> {};
template <>
struct ReadersOf<DType::kIQ2_XXS> : Readers<Iq2XxsCodes, ScalesBesideSigns<4, 1>> {};
template <>
struct ReadersOf<DType::kIQ2_XS> : Readers<Iq2XsCodes, Iq2Scales> {};
template <>
struct ReadersOf<DType::kIQ2_S> : Readers<Iq2SCodes, Iq2Scales> {};
template <>
struct ReadersOf<DType::kIQ3_XXS> : Readers<Iq3XxsCodes, ScalesBesideSigns<8, 2>> {};
template <>
struct ReadersOf<DType::kIQ3_S> : Readers<Iq3SCodes, Iq3SScales> {};
// ik_llama.cpp's.
template <>
struct ReadersOf<DType::kIQ2_K> : Readers<TableCodes<2, kIq2Values, 31, kIq2Shift>, Iq2KScales> {};
template <>
struct ReadersOf<DType::kIQ3_K> : Readers<TableCodes<3, kIq3Values, 63, kIq3Shift>, Iq3KScales> {};
template <>
struct ReadersOf<DType::kIQ4_K> : Readers<TableCodes<4, kIq4Values, 128, kIq4Shift>, Iq4KScales> {};
template <>
struct ReadersOf<DType::kIQ5_K> : Readers<TableCodes<5, kIq5Values, 128, kIq5Shift>, Iq4KScales> {};
template <>
struct ReadersOf<DType::kIQ6_K> : Readers<TableCodes<6, kIq6Values, 128, kIq6Shift>, Iq6KScales> {};
template <>
struct ReadersOf<DType::kIQ2_KS> : Readers<TableCodes<2, kIq2Values, 31, kIq2Shift>, Iq2KsScales> {};
template <>
struct ReadersOf<DType::kIQ2_KL> : Readers<Iq2KlCodes, Iq2KlScales> {};
template <>
struct ReadersOf<DType::kIQ3_KS> : Readers<TableCodes<3, kIq3Values, 63, kIq3Shift>, Iq3KsScales> {};
template <>
struct ReadersOf<DType::kIQ4_KS> : Readers<TableCodes<4, kIq4Values, 128, kIq4Shift>, RowByteScales> {};
template <>
struct ReadersOf<DType::kIQ4_KSS> : Readers<GrayCodes, SpreadByteScales> {};
template <>
struct ReadersOf<DType::kIQ5_KS> : Readers<TableCodes<5, kIq5Values, 128, kIq5Shift>, RowByteScales> {};

// What the loops of products depend on beside the readers.
//
//   kParts   scales of a tile: 2 where each covers 16 columns
//   kMins    minima join the sum of activations, which is -1/128 of their offset
//   kFolds   scales are whole numbers times d (readers_of_scales.h)
//
// AVX2 and AVX-512 add a block of 32 columns to a sum as follows, f(...) being one multiply-add and dot, offset and in_scale what
// QuantizedRows says:
//
//   a scale for 32   sum = f(dot, scale * in_scale, sum)              and  sum = f(offset * in_scale, min / 128, sum)
//   scales for 16    joined = f(dot1, scale1, dot0 * scale0)          or, where kFolds, (dot1 * number1 + dot0 * number0) * d
//                    joined = f(offset, min / 128, joined) for both;  sum = f(joined, in_scale, sum)
//
// so that 16 columns take a conversion and one more multiply-add only.
template <int kScaleParts, bool kHasMins, bool kFold>
struct Form {
  static constexpr int kParts = kScaleParts;
  static constexpr bool kMins = kHasMins, kFolds = kFold;
  static constexpr Activations kKind = kParts == 2 ? Activations::kHalves : Activations::kNarrow;
  static_assert(kParts == 2 || !kFolds);
  static_assert(kParts == 1 || kFolds || !kMins);  // no format has such
};

template <typename Scales>
constexpr bool kScalesFold = requires {
  Scales::kFolds;
};

template <DType kType>
struct Kernel : ReadersOf<kType> {
  using F = Format<kType>;
  using FormOf = Form<F::kStep == 16 ? 2 : 1, F::kMins, kScalesFold<typename ReadersOf<kType>::Scales>>;
  static_assert(kActivationsOf<F> == FormOf::kKind || kActivationsOf<F> == Activations::kWide);
  static constexpr int kTilesPerScale = F::kTilesPerScale;
  static constexpr int kTileBytes = kLanes * F::kCodeBytes;
  static constexpr int kEntryBytes = kLanes * F::kScaleBytes;
  static constexpr int kHeaderBytes = kLanes * F::kRowBytes;  // of a tile's rows
};

// By how much an offset, -128 times a sum of activations, is shifted right to be -zero times it.
constexpr int OffsetShift(int zero) {
  int shift = 0;
  while (zero << shift < 128) ++shift;
  return shift;
}

}  // namespace
}  // namespace ferry
