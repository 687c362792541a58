#include "common/number.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

TEST(Number, IsDecimalWhateverItBeginsWith) {
  EXPECT_EQ(*ParseInteger("010", 0, 100), 10);
  EXPECT_EQ(*ParseInteger("-1", -1, 100), -1);
  EXPECT_EQ(*ParseUnsigned("18446744073709551615", UINT64_MAX), UINT64_MAX);
  EXPECT_EQ(*ParseDecimal("1e-3", 0, 1), 1e-3);
}

TEST(Number, IsRefusedUnlessItIsWholeAndInRange) {
  for (const char* text : {"", " 1", "1 ", "+1", "0x10", "1.0", "1e3", "1'000", "--1", "-", "ten", "101", "-2", "4294967296",
                           "18446744073709551617", "1k"}) {
    EXPECT_THAT(ParseInteger(text, -1, 100), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("from -1 to 100"))) << text;
  }
  for (const char* text : {"-1", "0x1", "18446744073709551616", ""}) EXPECT_FALSE(ParseUnsigned(text, UINT64_MAX).ok()) << text;
  for (const char* text : {"nan", "inf", "-inf", "0x1p3", "1.5x", "", "2", "-0.1"}) {
    EXPECT_FALSE(ParseDecimal(text, 0, 1.5).ok()) << text;
  }
}

TEST(Number, HasUnitsWhereTheyAreAllowed) {
  EXPECT_EQ(*ParseInteger("32k", 0, 1 << 20, /*units=*/true), 32768);
  EXPECT_EQ(*ParseInteger("1M", 0, 1 << 20, /*units=*/true), 1 << 20);
  for (const char* text : {"k", "32kk", "2M", "9223372036854775807g", "-1k"}) {
    EXPECT_FALSE(ParseInteger(text, 0, 1 << 20, /*units=*/true).ok()) << text;
  }
}

}  // namespace
}  // namespace ferry
