#include "worker/expert_forecast.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/expert_plan.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(ExpertForecast, KnowsNothingAtFirst) {
  const ExpertForecast forecast(0, 2, 4);
  EXPECT_THAT(forecast.For(0, 1000, 0).experts, IsEmpty());
}

TEST(ExpertForecast, ExpectsWhatWasUsedBefore) {
  ExpertForecast forecast(0, 2, 4);
  forecast.Learn(0, 1000, std::vector<int32_t>{100, 0, 800, 100});
  const ExpertForecast::Candidates candidates = forecast.For(0, 1000, 0);
  EXPECT_THAT(candidates.experts, ElementsAre(2, 0, 3)) << "most likely first, the one never used not at all";
  EXPECT_EQ(candidates.num_certain, 3);
}

TEST(ExpertForecast, IsLessSureOfFewerRows) {
  ExpertForecast forecast(0, 2, 4);
  forecast.Learn(0, 1000, std::vector<int32_t>{50, 0, 900, 50});
  const ExpertForecast::Candidates candidates = forecast.For(0, 20, 0);
  EXPECT_THAT(candidates.experts, ElementsAre(2, 0, 3));
  EXPECT_EQ(candidates.num_certain, 1) << "20 rows use an expert of 5 % with probability 0.64";
}

TEST(ExpertForecast, TakesALayerItHasNotSeenForLikeTheOneBefore) {
  ExpertForecast forecast(0, 2, 4);
  forecast.Learn(0, 100, std::vector<int32_t>{50, 50, 50, 50});
  EXPECT_EQ(forecast.For(1, 100, 0).num_certain, 4);
  EXPECT_THAT(forecast.For(1, 1000, 0).experts, IsEmpty()) << "a pass of another size says nothing";
  forecast.Learn(0, 100, std::vector<int32_t>{100, 100, 0, 0});
  EXPECT_EQ(forecast.For(1, 100, 0).num_certain, 0);
  EXPECT_THAT(forecast.For(1, 100, 0).experts, ElementsAre(0, 1, 2, 3)) << "half are likely";
}

TEST(ExpertForecast, LeavesSmallStepsAlone) {
  ExpertForecast forecast(0, 2, 4);
  forecast.Learn(0, 1000, std::vector<int32_t>{500, 500, 500, 500});
  EXPECT_THAT(forecast.For(0, kMinRowsToForecast - 1, 0).experts, IsEmpty());
  EXPECT_EQ(forecast.For(0, kMinRowsToForecast, 0).num_certain, 4);
}

TEST(ExpertForecast, LeavesToTheHostWhatPlansGaveIt) {
  ExpertForecast forecast(0, 2, 4);
  forecast.Learn(0, 1000, std::vector<int32_t>{100, 5, 800, 95});
  EXPECT_EQ(forecast.worth_tokens(1000), 0) << "no plan yet";
  forecast.LearnPlan(1000, 50);
  EXPECT_EQ(forecast.worth_tokens(1000), 50);
  EXPECT_EQ(forecast.worth_tokens(5000), 0) << "a pass of another size";
  EXPECT_THAT(forecast.For(0, 1000, 50).experts, ElementsAre(2, 0, 3));
  EXPECT_THAT(forecast.For(0, 1000, 200).experts, ElementsAre(2));
}

TEST(ExpertForecast, FillsTheGapAndNoMore) {
  ExpertForecast forecast(0, 2, 64);
  EXPECT_EQ(forecast.budget(), 2);
  forecast.LearnGap(2, 2);
  forecast.LearnGap(4, 4);
  EXPECT_EQ(forecast.budget(), 8);
  forecast.LearnGap(8, 5);
  EXPECT_EQ(forecast.budget(), 6) << "what came, and the one under way";
  forecast.LearnGap(3, 3);
  EXPECT_EQ(forecast.budget(), 6) << "fewer were started than allowed: nothing is learnt";
  forecast.LearnGap(6, 0);
  EXPECT_EQ(forecast.budget(), 1);
  for (int i = 0; i < 20; ++i) forecast.LearnGap(forecast.budget(), forecast.budget());
  EXPECT_EQ(forecast.budget(), 64) << "never more than there are";
}

}  // namespace
}  // namespace ferry
