#include "common/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ferry {
namespace {

TEST(Half, WidensTheNumbersOfTheStandard) {
  EXPECT_EQ(HalfToFloat(0x3C00), 1.0f);
  EXPECT_EQ(HalfToFloat(0xC000), -2.0f);
  EXPECT_EQ(HalfToFloat(0x7BFF), 65504.0f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0x0400), 0x1p-14f);
  EXPECT_TRUE(std::signbit(HalfToFloat(0x8000)));
  EXPECT_EQ(HalfToFloat(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(HalfToFloat(0x7E00)));
}

TEST(Half, ComesBackFromFloatUnchanged) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), half) << value;
    }
  }
}

TEST(Half, RoundsToTheNearestAndTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const float a = HalfToFloat(low), b = HalfToFloat(high), middle = (a + b) / 2;  // exact: one bit more than f16
    ASSERT_EQ(FloatToHalf(middle), low % 2 == 0 ? low : high) << middle;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), low) << middle;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, b)), high) << middle;
    ASSERT_EQ(FloatToHalf(-middle), 0x8000 | (low % 2 == 0 ? low : high)) << middle;
  }
}

TEST(Half, OverflowsToInfinity) {
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7C00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xFC00);
  EXPECT_EQ(FloatToHalf(1e-30f), 0);
}

TEST(BFloat16, RoundsToTheNearestAndTiesToEven) {
  EXPECT_EQ(FloatToBFloat16(1.0f), 0x3F80);
  EXPECT_EQ(FloatToBFloat16(1.0f + 0x1p-8f), 0x3F80);      // tie, even below
  EXPECT_EQ(FloatToBFloat16(1.0f + 3 * 0x1p-8f), 0x3F82);  // tie, even above
  EXPECT_EQ(FloatToBFloat16(1.0f + 0x1.01p-8f), 0x3F81);   // just above the tie
  EXPECT_EQ(BFloat16ToFloat(0xC040), -3.0f);
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(BFloat16ToFloat(FloatToBFloat16(3.4e38f)), std::numeric_limits<float>::infinity());
}

TEST(E8M0, IsAPowerOfTwo) {
  EXPECT_EQ(E8M0ToFloat(127), 1.0f);
  EXPECT_EQ(E8M0ToFloat(120), 0x1p-7f);
  EXPECT_EQ(E8M0ToFloat(254), 0x1p127f);
  EXPECT_EQ(E8M0ToFloat(0), 0x1p-127f);
  EXPECT_TRUE(std::isnan(E8M0ToFloat(255)));
}

TEST(Fp4, DoubledCodesAreWholeNumbers) {
  for (int code = 0; code < 16; ++code) EXPECT_EQ(2 * kFp4Values[code], kFp4Doubled[code]);
}

}  // namespace
}  // namespace ferry
