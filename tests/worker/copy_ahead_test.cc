#include "worker/copy_ahead.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(CopyAhead, KnowsNothingAtFirst) {
  const CopyAhead ahead(0, 2, 4);
  EXPECT_THAT(ahead.For(0, 1000, 0).experts, IsEmpty());
}

TEST(CopyAhead, ExpectsWhatWasUsedBefore) {
  CopyAhead ahead(0, 2, 4);
  ahead.Learn(0, 1000, std::vector<int32_t>{100, 0, 800, 100});
  const CopyAhead::Candidates candidates = ahead.For(0, 1000, 0);
  EXPECT_THAT(candidates.experts, ElementsAre(2, 0, 3)) << "most likely first, the one never used not at all";
  EXPECT_EQ(candidates.num_certain, 3);
}

TEST(CopyAhead, IsLessSureOfFewerRows) {
  CopyAhead ahead(0, 2, 4);
  ahead.Learn(0, 1000, std::vector<int32_t>{50, 0, 900, 50});
  const CopyAhead::Candidates candidates = ahead.For(0, 20, 0);
  EXPECT_THAT(candidates.experts, ElementsAre(2, 0, 3));
  EXPECT_EQ(candidates.num_certain, 1) << "20 rows use an expert of 5 % with probability 0.64";
}

TEST(CopyAhead, TakesALayerItHasNotSeenForLikeTheOneBefore) {
  CopyAhead ahead(0, 2, 4);
  ahead.Learn(0, 100, std::vector<int32_t>{50, 50, 50, 50});
  EXPECT_EQ(ahead.For(1, 100, 0).num_certain, 4);
  EXPECT_THAT(ahead.For(1, 1000, 0).experts, IsEmpty()) << "a pass of another size says nothing";
  ahead.Learn(0, 100, std::vector<int32_t>{100, 100, 0, 0});
  EXPECT_EQ(ahead.For(1, 100, 0).num_certain, 0);
  EXPECT_THAT(ahead.For(1, 100, 0).experts, ElementsAre(0, 1, 2, 3)) << "half are likely";
}

TEST(CopyAhead, LeavesSmallStepsAlone) {
  CopyAhead ahead(0, 2, 4);
  ahead.Learn(0, 1000, std::vector<int32_t>{500, 500, 500, 500});
  EXPECT_THAT(ahead.For(0, CopyAhead::kMinRows - 1, 0).experts, IsEmpty());
  EXPECT_EQ(ahead.For(0, CopyAhead::kMinRows, 0).num_certain, 4);
}

TEST(CopyAhead, LeavesToTheHostWhatPlansGaveIt) {
  CopyAhead ahead(0, 2, 4);
  ahead.Learn(0, 1000, std::vector<int32_t>{100, 5, 800, 95});
  EXPECT_EQ(ahead.worth_tokens(1000), 0) << "no plan yet";
  ahead.LearnPlan(1000, 50);
  EXPECT_EQ(ahead.worth_tokens(1000), 50);
  EXPECT_EQ(ahead.worth_tokens(5000), 0) << "a pass of another size";
  EXPECT_THAT(ahead.For(0, 1000, 50).experts, ElementsAre(2, 0, 3));
  EXPECT_THAT(ahead.For(0, 1000, 200).experts, ElementsAre(2));
}

TEST(CopyAhead, FillsTheGapAndNoMore) {
  CopyAhead ahead(0, 2, 64);
  EXPECT_EQ(ahead.budget(), 2);
  ahead.LearnGap(2, 2);
  ahead.LearnGap(4, 4);
  EXPECT_EQ(ahead.budget(), 8);
  ahead.LearnGap(8, 5);
  EXPECT_EQ(ahead.budget(), 6) << "what came, and the one under way";
  ahead.LearnGap(3, 3);
  EXPECT_EQ(ahead.budget(), 6) << "fewer were started than allowed: nothing is learnt";
  ahead.LearnGap(6, 0);
  EXPECT_EQ(ahead.budget(), 1);
  for (int i = 0; i < 20; ++i) ahead.LearnGap(ahead.budget(), ahead.budget());
  EXPECT_EQ(ahead.budget(), 64) << "never more than there are";
}

}  // namespace
}  // namespace ferry
