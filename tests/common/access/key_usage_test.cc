#include "common/access/key_usage.h"

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

TEST(KeyUsage, AKeyHasSoManyRequestsAtOnce) {
  FakeClock clock;
  KeyUsage usage(&clock);
  const Principal alice = {.name = "alice", .max_parallel = 2}, bob = {.name = "bob", .max_parallel = 1};
  ASSERT_OK(usage.Begin(alice));
  ASSERT_OK(usage.Begin(alice));
  EXPECT_THAT(usage.Begin(alice), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("alice has 2 requests")));
  EXPECT_OK(usage.Begin(bob)) << "keys do not count for each other";
  usage.End(alice, 10);
  EXPECT_OK(usage.Begin(alice));
}

TEST(KeyUsage, ABudgetOfTokensGrowsAgainByTheMinute) {
  FakeClock clock;
  KeyUsage usage(&clock);
  const Principal alice = {.name = "alice", .tokens_per_minute = 600};
  ASSERT_OK(usage.Begin(alice));
  usage.End(alice, 900);
  EXPECT_THAT(usage.Begin(alice), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("come again in 31 s")));
  clock.Advance(absl::Seconds(29));
  EXPECT_FALSE(usage.Begin(alice).ok());
  clock.Advance(absl::Seconds(2));
  EXPECT_OK(usage.Begin(alice));
  usage.End(alice, 0);
  clock.Advance(absl::Hours(10));
  ASSERT_OK(usage.Begin(alice));
  usage.End(alice, 601);
  EXPECT_FALSE(usage.Begin(alice).ok()) << "a long rest earns at most a minute's budget";
}

TEST(KeyUsage, WithoutLimitsNothingIsRefused) {
  FakeClock clock;
  KeyUsage usage(&clock);
  for (int i = 0; i < 1000; ++i) ASSERT_OK(usage.Begin({.name = "admin", .role = Role::kAdmin}));
}

}  // namespace
}  // namespace ferry
