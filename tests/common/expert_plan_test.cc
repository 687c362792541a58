#include "common/expert_plan.h"

#include <gtest/gtest.h>

#include <vector>

namespace ferry {
namespace {

constexpr ExpertPlace kResident = ExpertPlace::kResident, kShip = ExpertPlace::kShip, kHost = ExpertPlace::kHost;

int64_t Worth(const std::vector<ActivatedExpert>& uses, const std::vector<ExpertPlace>& places) {
  return TokensWorthACopy(uses, places);
}

TEST(TokensWorthACopy, AnythingIsWhenTheHostGotNothing) {
  EXPECT_EQ(Worth({{.expert = 0, .tokens = 5}, {.expert = 1, .tokens = 9}}, {kShip, kShip}), 0);
}

TEST(TokensWorthACopy, AsManyAsTheLightestThatCameHere) {
  EXPECT_EQ(Worth({{.expert = 0, .tokens = 5}, {.expert = 1, .tokens = 90}, {.expert = 2, .tokens = 40, .resident = kComing}},
                  {kHost, kShip, kResident}),
            6)
      << "more than the heaviest on the host is enough";
  EXPECT_EQ(Worth({{.expert = 0, .tokens = 50}, {.expert = 1, .tokens = 40}}, {kHost, kShip}), 40);
}

TEST(TokensWorthACopy, WhatWasHereAlreadySaysNothing) {
  EXPECT_EQ(Worth({{.expert = 0, .tokens = 5}, {.expert = 1, .tokens = 1, .resident = 1}}, {kHost, kResident}), 6);
}

}  // namespace
}  // namespace ferry
