#include "coordinator/experts/expert_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace ferry {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr PlannerRates kRates = {
    .link_bytes_per_second = 50e9, .host_read_bytes_per_second = 50e9, .host_flops_per_second = 1e12};

PlannerInput Input(const std::vector<ActivatedExpert>& uses) {
  return {.uses = uses, .bytes_per_expert = 13e6, .flops_per_token = 50e6, .num_slots = 16, .rates = kRates};
}

double Makespan(const PlannerInput& input, const std::vector<ExpertPlace>& places) {
  double link = 0, host = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == ExpertPlace::kShip) link += input.bytes_per_expert / input.rates.link_bytes_per_second;
    if (places[i] == ExpertPlace::kHost) {
      host += input.bytes_per_expert / input.rates.host_read_bytes_per_second +
              (input.uses[i].tokens - 1) * input.flops_per_token / input.rates.host_flops_per_second;
    }
  }
  return std::max(link, host);
}

TEST(ExpertPlanner, KeepsResidentExpertsWhereTheyAre) {
  const std::vector<ActivatedExpert> uses = {{.expert = 1, .tokens = 1, .resident = 1},
                                             {.expert = 5, .tokens = 900, .resident = 1}};
  EXPECT_THAT(PlanExperts(Input(uses)).places, Each(ExpertPlace::kResident));
}

TEST(ExpertPlanner, ShipsNothingWithoutSlots) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 4000}};
  PlannerInput input = Input(uses);
  input.num_slots = 0;
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kHost));
}

TEST(ExpertPlanner, ShipsTheHeavyAndKeepsTheLight) {
  const std::vector<ActivatedExpert> uses = {
      {.expert = 0, .tokens = 1}, {.expert = 3, .tokens = 2000}, {.expert = 9, .tokens = 2}};
  PlannerInput input = Input(uses);
  input.rates.host_read_bytes_per_second = 4 * input.rates.link_bytes_per_second;  // reads both while the link brings the third
  EXPECT_THAT(PlanExperts(input).places, ElementsAre(ExpertPlace::kHost, ExpertPlace::kShip, ExpertPlace::kHost));
}

TEST(ExpertPlanner, DividesWhatIsOnItsWayLikeWhatIsAbsent) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 1, .resident = kComing},
                                             {.expert = 3, .tokens = 2000, .resident = kComing},
                                             {.expert = 4, .tokens = 1500}};
  EXPECT_THAT(PlanExperts(Input(uses)).places, ElementsAre(ExpertPlace::kHost, ExpertPlace::kResident, ExpertPlace::kShip));
}

TEST(ExpertPlanner, BreaksTiesByTheLowerId) {
  // Two equal experts, link as fast as the host: one goes each way, the first one ships.
  const std::vector<ActivatedExpert> uses = {{.expert = 2, .tokens = 1}, {.expert = 7, .tokens = 1}};
  EXPECT_THAT(PlanExperts(Input(uses)).places, ElementsAre(ExpertPlace::kShip, ExpertPlace::kHost));
}

TEST(ExpertPlanner, ShipsEverythingAbsentWhenTold) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 1}, {.expert = 1, .tokens = 1, .resident = 1}};
  PlannerInput input = Input(uses);
  input.ship_all = true;
  EXPECT_THAT(PlanExperts(input).places, ElementsAre(ExpertPlace::kShip, ExpertPlace::kResident));
}

TEST(ExpertPlanner, HonoursOverrides) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 1}, {.expert = 1, .tokens = 9000}};
  PlannerInput input = Input(uses);
  input.ship_allowed = false;
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kHost));
  input.ship_allowed = true;
  input.host_allowed = false;
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kShip));
}

TEST(ExpertPlanner, ShipsWhenTheRatesAreNotKnown) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 1}};
  PlannerInput input = Input(uses);
  input.rates.link_bytes_per_second = 0;
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kShip));
}

TEST(ExpertPlanner, IsNeverSlowerThanEitherPlaceAlone) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<ActivatedExpert> uses(1 + random() % 128);
    for (size_t i = 0; i < uses.size(); ++i) {
      uses[i] = {.expert = static_cast<int32_t>(i), .tokens = static_cast<int32_t>(1 + random() % (1u << (random() % 12)))};
    }
    const PlannerInput input = Input(uses);
    const double planned = Makespan(input, PlanExperts(input).places);
    EXPECT_LE(planned, Makespan(input, std::vector(uses.size(), ExpertPlace::kShip)) + 1e-12) << "trial " << trial;
    EXPECT_LE(planned, Makespan(input, std::vector(uses.size(), ExpertPlace::kHost)) + 1e-12) << "trial " << trial;
  }
}

TEST(ExpertPlanner, PredictsItsOwnTimes) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 1}, {.expert = 3, .tokens = 2000}};
  const ExpertPlan plan = PlanExperts(Input(uses));
  EXPECT_DOUBLE_EQ(plan.link_seconds, 13e6 / 50e9);
  EXPECT_DOUBLE_EQ(plan.host_seconds, 13e6 / 50e9);
}

}  // namespace
}  // namespace ferry
