#include "coordinator/planning/network_costs.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

constexpr int64_t kRowValues = 1000;  // a row has 4,000 bytes
const WorkerNetwork kHere;
const WorkerNetwork kNear = {.host = 1, .exchange_seconds = 1e-3, .bytes_per_second = 4e6};  // 1,000 rows a second
const WorkerNetwork kFar = {.host = 2, .exchange_seconds = 9e-3, .bytes_per_second = 1e6};

HostShareSize Share(int64_t rows, double entries) {
  return {.rows = rows, .n_embd = kRowValues, .entries = entries, .most_rows = 512, .top_k = 8};
}

TEST(NetworkCosts, AreNothingOnTheCoordinatorsHost) {
  EXPECT_EQ(HostShareSeconds(kHere, Share(100, 800)), 0);
  EXPECT_EQ(ContributionSeconds(kHere, Share(100, 800)), 0);
  EXPECT_EQ(StepMessageSeconds(kHere), 0);
  EXPECT_EQ(HiddenStatesSeconds(kNear, kNear, 100, kRowValues), 0) << "two workers of one host";
}

TEST(NetworkCosts, OfADecodeRowAreAnExchangeTheRowAndItsContributions) {
  EXPECT_NEAR(HostShareSeconds(kNear, Share(1, 8)), 1e-3 + 9e-3, 1e-5);
  EXPECT_NEAR(ContributionSeconds(kNear, Share(1, 8)), 8e-3, 1e-9);
  EXPECT_EQ(HostShareSeconds(kNear, Share(1, 0)), 0) << "no expert, no exchange";
}

TEST(NetworkCosts, CountARequestForEachThatAMessageHolds) {
  const double one = HostShareSeconds(kNear, Share(512, 4096)), four = HostShareSeconds(kNear, Share(2048, 4 * 4096));
  EXPECT_NEAR(one, 1e-3 + 0.512 + 4.096, 1e-2) << "nearly every row goes along";
  EXPECT_GT(four, 4 * one) << "four requests, and each carries most of the rows";
  EXPECT_LT(four, 6 * one);
}

TEST(NetworkCosts, OfHiddenStatesAreThoseOfTheSlowerWay) {
  EXPECT_NEAR(HiddenStatesSeconds(kHere, kNear, 10, kRowValues), 0.5e-3 + 10e-3, 1e-9);
  EXPECT_EQ(HiddenStatesSeconds(kHere, kNear, 10, kRowValues), HiddenStatesSeconds(kNear, kHere, 10, kRowValues));
  EXPECT_NEAR(HiddenStatesSeconds(kNear, kFar, 10, kRowValues), 4.5e-3 + 40e-3, 1e-9);
}

}  // namespace
}  // namespace ferry
