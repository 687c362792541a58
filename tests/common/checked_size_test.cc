#include "common/checked_size.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

constexpr uint64_t kMax = CheckedSize::kMax;

TEST(CheckedSize, ComputesWhatFits) {
  EXPECT_EQ((CheckedSize(2) + CheckedSize(3) * 4 - 1).value(), 13u);
  EXPECT_EQ((CheckedSize(kMax - 1) + 1).value(), kMax);
  EXPECT_EQ((CheckedSize(kMax) * 1).value(), kMax);
  EXPECT_EQ((CheckedSize(0) * kMax).value(), 0u);
  EXPECT_EQ((CheckedSize(7) - 7).value(), 0u);
}

TEST(CheckedSize, RefusesWhatWasNegativeOrTooLargeFromTheStart) {
  EXPECT_TRUE(CheckedSize(kMax).valid());
  EXPECT_FALSE(CheckedSize(kMax + 1).valid());
  EXPECT_FALSE(CheckedSize(static_cast<uint64_t>(int64_t{-1})).valid());
}

TEST(CheckedSize, RemembersAnOverflowWhateverFollows) {
  EXPECT_FALSE((CheckedSize(kMax) + 1).valid());
  EXPECT_FALSE((CheckedSize(kMax) + kMax).valid());
  EXPECT_FALSE((CheckedSize(uint64_t{1} << 32) * (uint64_t{1} << 31)).valid());
  EXPECT_FALSE((CheckedSize(3) - 4).valid());
  EXPECT_FALSE(((CheckedSize(3) - 4) + 4).valid());
  EXPECT_FALSE(((CheckedSize(kMax) + 1) * 0).valid());
}

TEST(CheckedSize, IsAtMostALimitOnlyWhenValid) {
  EXPECT_TRUE(CheckedSize(5).AtMost(5));
  EXPECT_FALSE(CheckedSize(6).AtMost(5));
  EXPECT_FALSE((CheckedSize(0) - 1).AtMost(~uint64_t{0}));
}

TEST(CheckedSize, AlignsUpWithoutWrapping) {
  EXPECT_EQ(CheckedSize(0).AlignedUp(32).value(), 0u);
  EXPECT_EQ(CheckedSize(1).AlignedUp(32).value(), 32u);
  EXPECT_EQ(CheckedSize(32).AlignedUp(32).value(), 32u);
  EXPECT_FALSE(CheckedSize(kMax).AlignedUp(32).valid());
  EXPECT_FALSE(CheckedSize(1).AlignedUp(0).valid());
}

TEST(CheckedSizeDeathTest, ReadingAnInvalidValueEndsTheProcess) {
  EXPECT_DEATH((CheckedSize(0) - 1).value(), "");
  EXPECT_EQ((CheckedSize(0) - 1).value_or(9), 9u);
}

}  // namespace
}  // namespace ferry
