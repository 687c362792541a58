#include "coordinator/experts/share_way.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

// 1,000 rows a second, and a millisecond for a request and its answer.
const ShareWay kWay = {.cost = {.exchange_seconds = 1e-3, .row_seconds = 1e-3}, .max_rows = 100, .max_entries = 800};

TEST(ShareWay, CostsNothingInSharedMemory) {
  EXPECT_EQ(ShareSeconds({}, 100, 800), 0);
  EXPECT_EQ(ContributionSeconds({}, 800), 0);
}

TEST(ShareWay, AnEmptyShareIsNotSent) { EXPECT_EQ(ShareSeconds(kWay, 100, 0), 0); }

TEST(ShareWay, ARowGoesThereOnceAndEachOfItsContributionsComesBack) {
  EXPECT_NEAR(ShareSeconds(kWay, 1, 8), 1e-3 + 1e-3 + 8e-3, 1e-5);
  EXPECT_NEAR(ContributionSeconds(kWay, 8), 8e-3, 1e-12);
}

TEST(ShareWay, FewEntriesOfManyRowsAreOfARowEach) { EXPECT_NEAR(ShareSeconds(kWay, 1'000'000'000, 5), 1e-3 + 5e-3 + 5e-3, 1e-9); }

TEST(ShareWay, MoreThanARequestHoldsTakesMoreRequests) {
  const double one = ShareSeconds(kWay, 100, 800), two = ShareSeconds(kWay, 100, 801);
  EXPECT_GT(two - one, 0.9 * 1e-3) << "the second request's exchange";
  EXPECT_NEAR(ShareSeconds(kWay, 1000, 800), 6e-3 + 0.5507 + 0.8, 1e-3) << "551 rows in requests of 100";
}

}  // namespace
}  // namespace ferry
