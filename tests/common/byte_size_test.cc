#include "common/byte_size.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

TEST(ParseByteSize, ReadsPowersOf1024InAnyCase) {
  EXPECT_EQ(ParseByteSize("0").value(), 0);
  EXPECT_EQ(ParseByteSize("1000000").value(), 1000000);
  EXPECT_EQ(ParseByteSize("16k").value(), 16 << 10);
  EXPECT_EQ(ParseByteSize("512MiB").value(), int64_t{512} << 20);
  EXPECT_EQ(ParseByteSize("2GB").value(), 2'000'000'000) << "a power of ten";
  EXPECT_EQ(ParseByteSize("4gib").value(), int64_t{4} << 30);
}

TEST(ParseByteSize, RefusesEverythingElse) {
  for (const char* const text :
       {"", "GiB", "-1", "4.5GiB", "4Gb2", "4 GiB", "99999999999999999999", "9223372036854775808", "8388608T"}) {
    EXPECT_THAT(ParseByteSize(text), StatusIs(absl::StatusCode::kInvalidArgument)) << "'" << text << "'";
  }
}

}  // namespace
}  // namespace ferry
