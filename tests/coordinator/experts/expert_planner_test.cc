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

constexpr PlannerRates kRates = {.link_bytes_per_second = 50e9,
                                 .host = {.read_bytes_per_second = 50e9, .flops_per_second = 1e12}};

PlannerInput Input(const std::vector<ActivatedExpert>& uses) {
  return {.uses = uses, .bytes_per_expert = 13e6, .flops_per_token = 50e6, .num_slots = 16, .rates = kRates};
}

std::vector<ActivatedExpert> OneTokenEach(int count) {
  std::vector<ActivatedExpert> uses;
  for (int i = 0; i < count; ++i) uses.push_back({.expert = i, .tokens = 1});
  return uses;
}
EnginePlace LikeTheHost() { return {.rates = kRates.host}; }

double Makespan(const PlannerInput& input, const std::vector<ExpertPlace>& places) {
  double link = 0, host = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] == ExpertPlace::kShip) link += input.bytes_per_expert / input.rates.link_bytes_per_second;
    if (places[i] == ExpertPlace::kHost) {
      host += input.bytes_per_expert / input.rates.host.read_bytes_per_second +
              (input.uses[i].tokens - 1) * input.flops_per_token / input.rates.host.flops_per_second;
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
  input.rates.host.read_bytes_per_second = 4 * input.rates.link_bytes_per_second;  // reads both while the link brings the third
  EXPECT_THAT(PlanExperts(input).places, ElementsAre(ExpertPlace::kHost, ExpertPlace::kShip, ExpertPlace::kHost));
}

TEST(ExpertPlanner, DividesWhatIsOnItsWayLikeWhatIsAbsent) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 1, .resident = kComing},
                                             {.expert = 3, .tokens = 2000, .resident = kComing},
                                             {.expert = 4, .tokens = 1500}};
  EXPECT_THAT(PlanExperts(Input(uses)).places, ElementsAre(ExpertPlace::kHost, ExpertPlace::kResident, ExpertPlace::kShip));
}

TEST(ExpertPlanner, LeavesMoreToAHostThatComputesManyRowsInOnesTime) {
  // By the two rates alone, 64 rows take 3 ms more than one; by the curve, nothing more.
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 64}, {.expert = 3, .tokens = 64}};
  PlannerInput input = Input(uses);
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kShip));
  input.rates.host.flops_at_rows = {0.77e12, 3e12, 12e12, 13e12};
  EXPECT_THAT(PlanExperts(input).places, ElementsAre(ExpertPlace::kShip, ExpertPlace::kHost));
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

// ----------------------------------------------------------------------------------------- a worker behind a network

// A worker of another host: its records come at 0.25 GB/s, in 52 ms each, and the host takes 0.26 ms for one of few rows.
constexpr double kRowBytes = 8192, kCableRate = 250e6, kCopySeconds = 13e6 / kCableRate;
PlannerInput Over(const std::vector<ActivatedExpert>& uses, double exchange_seconds) {
  PlannerInput input = Input(uses);
  input.rates.link_bytes_per_second = kCableRate;
  input.num_rows = 4096;
  input.way.cost = {.exchange_seconds = exchange_seconds, .row_seconds = kRowBytes / kCableRate};
  return input;
}
// Seconds until the worker has everything, when it ships the first `shipped` uses.
double SecondsOver(const PlannerInput& input, size_t shipped) {
  double host = 0, entries = 0;
  for (const ActivatedExpert& use : input.uses.subspan(shipped)) {
    host += ExpertSeconds(input.rates.host, input.bytes_per_expert, input.flops_per_token, use.tokens);
    entries += use.tokens;
  }
  return std::max(static_cast<double>(shipped) * kCopySeconds + ContributionSeconds(input.way, entries),
                  host + ShareSeconds(input.way, input.num_rows, entries));
}
size_t Shipped(const ExpertPlan& plan) {
  return static_cast<size_t>(std::count(plan.places.begin(), plan.places.end(), ExpertPlace::kShip));
}

TEST(ExpertPlanner, CopiesAnExpertWhoseRowsCostMoreThanItsRecord) {
  // 2,000 rows there and contributions back are 131 ms on the cable, the record is 52.
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 2000}};
  PlannerInput input = Over(uses, 100e-6);
  input.rates.host.flops_per_second = 1e15;
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kShip));
  input.way = {};
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kHost)) << "in shared memory rows cost nothing";
}

TEST(ExpertPlanner, AsksNoEngineThatIsFartherAwayThanACopyTakes) {
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 4}};
  EXPECT_THAT(PlanExperts(Over(uses, 0.5 * kCopySeconds)).places, Each(ExpertPlace::kHost));
  EXPECT_THAT(PlanExperts(Over(uses, 2 * kCopySeconds)).places, Each(ExpertPlace::kShip));
}

TEST(ExpertPlanner, AskingAFarEnginePaysForManyExpertsTogether) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(16);
  const ExpertPlan plan = PlanExperts(Over(uses, 4 * kCopySeconds));
  EXPECT_EQ(Shipped(plan), 4u) << "as many copies as fit into the exchange for the others";
}

TEST(ExpertPlanner, CountsARequestForEachThatTheLinkHolds) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(16);
  PlannerInput input = Over(uses, kCopySeconds);
  const size_t one_request = Shipped(PlanExperts(input));
  input.way.max_entries = 4;
  EXPECT_GT(Shipped(PlanExperts(input)), one_request);
}

TEST(ExpertPlanner, OverANetworkNoOtherNumberOfCopiesIsFaster) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<ActivatedExpert> uses(1 + random() % 64);
    for (ActivatedExpert& use : uses) use.tokens = static_cast<int32_t>(1 + random() % (1u << (random() % 12)));
    std::sort(uses.begin(), uses.end(), [](const auto& a, const auto& b) { return a.tokens > b.tokens; });
    for (size_t i = 0; i < uses.size(); ++i) uses[i].expert = static_cast<int32_t>(i);
    const PlannerInput input = Over(uses, 1e-6 * static_cast<double>(random() % 200'000));
    double best = SecondsOver(input, 0);
    for (size_t shipped = 1; shipped <= uses.size(); ++shipped) best = std::min(best, SecondsOver(input, shipped));
    EXPECT_NEAR(SecondsOver(input, Shipped(PlanExperts(input))), best, 1e-9) << "trial " << trial;
  }
}

TEST(ExpertPlanner, AnExpertHostDoesNotShortenTheWorkersWay) {
  // Two engines take half of the time, but rows that cost more than records are not sent to either.
  const std::vector<ActivatedExpert> uses = {{.expert = 0, .tokens = 2000}, {.expert = 1, .tokens = 2000}};
  PlannerInput input = Over(uses, 100e-6);
  const std::vector<EnginePlace> others = {LikeTheHost()};
  input.others = others;
  EXPECT_THAT(PlanExperts(input).places, Each(ExpertPlace::kShip));
}

// ------------------------------------------------------------------------------------------------- engines of further hosts

EnginePlace Slower(double times) {
  EnginePlace place = LikeTheHost();
  place.rates = Slower(place.rates, times);
  return place;
}
PlannerInput OnEngines(const std::vector<ActivatedExpert>& uses, const std::vector<EnginePlace>& others) {
  PlannerInput input = Input(uses);
  input.num_slots = 0;
  input.num_rows = 1;
  input.others = others;
  return input;
}
int64_t CountOf(const ExpertPlan& plan, int32_t engine) { return std::count(plan.engines.begin(), plan.engines.end(), engine); }

TEST(ExpertPlanner, GivesAnEqualHostHalfOfTheExperts) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(4);
  const ExpertPlan plan = PlanExperts(OnEngines(uses, {LikeTheHost()}));
  EXPECT_EQ(CountOf(plan, 1), 2);
  EXPECT_DOUBLE_EQ(plan.engine_seconds, 2 * 13e6 / 50e9);
}

TEST(ExpertPlanner, DividesByTheRatesOfSeveralHosts) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(9);
  const ExpertPlan plan = PlanExperts(OnEngines(uses, {LikeTheHost(), Slower(0.5), Slower(2)}));
  EXPECT_THAT((std::vector<int64_t>{CountOf(plan, 0), CountOf(plan, 1), CountOf(plan, 2), CountOf(plan, 3)}),
              ElementsAre(2, 2, 4, 1));
}

TEST(ExpertPlanner, ASlowerHostNeverLengthensTheTime) {
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    std::vector<ActivatedExpert> uses;
    for (int expert = 0; expert < 32; ++expert) {
      if (random() % 2 == 0) uses.push_back({.expert = expert, .tokens = 1 + static_cast<int32_t>(random() % 40)});
    }
    std::vector<EnginePlace> others;
    for (int place = 0; place < static_cast<int>(random() % 4); ++place) {
      others.push_back(Slower(1 + random() % 3));
      others.back().exchange_seconds = (random() % 300) * 1e-6;
      others.back().memory = place + 1;
      auto holds = std::make_shared<std::vector<bool>>(32);
      for (int expert = 0; expert < 32; ++expert) (*holds)[expert] = random() % 3 > 0;
      others.back().holds = holds;
    }
    PlannerInput input = OnEngines(uses, others);
    if (others.empty()) input.others = {};
    const ExpertPlan without = PlanExperts(input);
    const double before = others.empty() ? without.host_seconds : without.engine_seconds;
    others.push_back(Slower(40));
    others.back().exchange_seconds = 3e-4;
    input.others = others;
    EXPECT_LE(PlanExperts(input).engine_seconds, before * (1 + 1e-12)) << "case " << i;
  }
}

TEST(ExpertPlanner, AHostWithoutRatesGetsNothing) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(8);
  const ExpertPlan plan = PlanExperts(OnEngines(uses, {EnginePlace{}, LikeTheHost()}));
  EXPECT_EQ(CountOf(plan, 1), 0);
  EXPECT_EQ(CountOf(plan, 2), 4);
}

TEST(ExpertPlanner, AHostGetsOnlyExpertsThatItHolds) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(6);
  std::vector<EnginePlace> others = {Slower(0.1)};
  others[0].holds = std::make_shared<std::vector<bool>>(std::vector<bool>{false, true, false, false, true});
  const ExpertPlan plan = PlanExperts(OnEngines(uses, others));
  EXPECT_THAT(plan.engines, ElementsAre(0, 1, 0, 0, 1, 0));
}

TEST(ExpertPlanner, AnExchangeThatCostsMoreThanItSavesIsNotMade) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(4);
  std::vector<EnginePlace> others = {LikeTheHost()};
  others[0].exchange_seconds = 4 * 13e6 / 50e9;
  EXPECT_EQ(CountOf(PlanExperts(OnEngines(uses, others)), 1), 0);
  others[0].exchange_seconds = 0;
  others[0].row_seconds = 13e6 / 50e9;
  EXPECT_EQ(CountOf(PlanExperts(OnEngines(uses, others)), 1), 1) << "one row there and one back take as long as two experts";
}

TEST(ExpertPlanner, EnginesOfOneMemoryShareItsRate) {
  const std::vector<ActivatedExpert> uses = OneTokenEach(8);
  std::vector<EnginePlace> others = {LikeTheHost()};
  others[0].memory = 0;
  others[0].memory_bytes_per_second = kRates.host.read_bytes_per_second;
  EXPECT_EQ(CountOf(PlanExperts(OnEngines(uses, others)), 1), 0) << "the host's engine reads all that the memory gives";
  others[0].memory_bytes_per_second *= 2;
  EXPECT_EQ(CountOf(PlanExperts(OnEngines(uses, others)), 1), 4);
}

TEST(ExpertPlanner, AnExchangeHoldsNoMoreThanItsEntries) {
  const std::vector<ActivatedExpert> uses = {
      {.expert = 0, .tokens = 30}, {.expert = 1, .tokens = 30}, {.expert = 2, .tokens = 30}};
  std::vector<EnginePlace> others = {Slower(0.01)};
  others[0].max_entries = 50;
  EXPECT_EQ(CountOf(PlanExperts(OnEngines(uses, others)), 1), 1);
}

TEST(ExpertPlanner, FurtherHostsLeaveLessToTheLink) {
  std::vector<ActivatedExpert> uses;
  for (int i = 0; i < 32; ++i) uses.push_back({.expert = i, .tokens = 1 + i});
  PlannerInput input = Input(uses);
  input.num_rows = 100;
  const auto shipped = [](const ExpertPlan& plan) {
    return std::count(plan.places.begin(), plan.places.end(), ExpertPlace::kShip);
  };
  const ExpertPlan alone = PlanExperts(input);
  const std::vector<EnginePlace> others = {LikeTheHost()};
  input.others = others;
  const ExpertPlan together = PlanExperts(input);
  EXPECT_LT(shipped(together), shipped(alone));
  EXPECT_GT(shipped(together), 0);
  EXPECT_LT(std::max(together.link_seconds, together.engine_seconds), std::max(alone.link_seconds, alone.host_seconds));
}

// Another worker's link as fast as the own one, `times` as slow.
HelperPlace Helper(double times = 1) {
  return {.link_bytes_per_second = 50e9 / times,
          .fixed_seconds = times * 100e-6,
          .row_seconds = times * 0.1e-6,
          .contribution_seconds = times * 0.1e-6};
}
std::vector<ActivatedExpert> Uses(int32_t count, int32_t tokens) {
  std::vector<ActivatedExpert> uses;
  for (int32_t i = 0; i < count; ++i) uses.push_back({.expert = i, .tokens = tokens + i % 7});
  return uses;
}
PlannerInput WithHelpers(const std::vector<ActivatedExpert>& uses, const std::vector<HelperPlace>& helpers) {
  PlannerInput input = Input(uses);
  input.num_slots = 128;
  input.num_rows = 4096;
  input.helpers = helpers;
  return input;
}
// The time until the layer's last expert is computed, by the rates that the planner was given.
double LayerSeconds(const PlannerInput& input, const ExpertPlan& plan) {
  double own = 0, host = 0;
  std::vector<double> ends(input.helpers.size());
  for (size_t i = 0; i < plan.places.size(); ++i) {
    const int64_t tokens = input.uses[i].tokens;
    const int32_t helper = plan.helpers.empty() ? -1 : plan.helpers[i];
    if (plan.places[i] == ExpertPlace::kHost) {
      host += input.bytes_per_expert / input.rates.host.read_bytes_per_second +
              static_cast<double>(tokens - 1) * input.flops_per_token / input.rates.host.flops_per_second;
    } else if (helper < 0) {
      own += input.bytes_per_expert / input.rates.link_bytes_per_second;
    } else {
      const HelperPlace& place = input.helpers[helper];
      if (ends[helper] == 0) ends[helper] = place.fixed_seconds + static_cast<double>(input.num_rows) * place.row_seconds;
      ends[helper] +=
          input.bytes_per_expert / place.link_bytes_per_second + static_cast<double>(tokens) * place.contribution_seconds;
    }
  }
  double last = std::max(own, host);
  for (const double end : ends) last = std::max(last, end);
  return last;
}
int64_t HelpedBy(const ExpertPlan& plan, int32_t helper) { return std::count(plan.helpers.begin(), plan.helpers.end(), helper); }

TEST(ExpertPlanner, ASecondLinkMakesALayerShorter) {
  const std::vector<ActivatedExpert> uses = Uses(80, 200);
  const std::vector<HelperPlace> helpers = {Helper()};
  PlannerInput input = WithHelpers(uses, helpers);
  input.host_allowed = false;
  const ExpertPlan plan = PlanExperts(input);
  EXPECT_THAT(plan.places, Each(ExpertPlace::kShip));
  EXPECT_GT(HelpedBy(plan, 0), 34);
  EXPECT_LT(HelpedBy(plan, 0), 40) << "rows and contributions take some of its time";
  EXPECT_NEAR(LayerSeconds(input, plan), plan.link_seconds, 1e-9);
}

TEST(ExpertPlanner, AHelperLeavesLessToTheHost) {
  const std::vector<ActivatedExpert> uses = Uses(80, 200);
  const ExpertPlan alone = PlanExperts(WithHelpers(uses, {}));
  const std::vector<HelperPlace> helpers = {Helper()};
  const PlannerInput input = WithHelpers(uses, helpers);
  const ExpertPlan helped = PlanExperts(input);
  const auto on_host = [](const ExpertPlan& plan) {
    return std::count(plan.places.begin(), plan.places.end(), ExpertPlace::kHost);
  };
  EXPECT_LT(on_host(helped), on_host(alone));
  EXPECT_GT(on_host(helped), 0);
  EXPECT_LT(LayerSeconds(input, helped), LayerSeconds(input, alone));
}

TEST(ExpertPlanner, ASlowerHelperNeverLengthensTheTime) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<ActivatedExpert> uses;
    for (int32_t expert = 0; expert < 64; ++expert) {
      if (random() % 4 != 0) uses.push_back({.expert = expert, .tokens = 1 + static_cast<int32_t>(random() % 600)});
    }
    std::vector<HelperPlace> helpers;
    for (uint32_t i = random() % 4; i > 0; --i) helpers.push_back(Helper(1 + random() % 4));
    const PlannerInput without = WithHelpers(uses, helpers);
    std::vector<HelperPlace> more = helpers;
    more.insert(more.begin() + static_cast<int64_t>(random() % (helpers.size() + 1)), Helper(10));
    const PlannerInput with = WithHelpers(uses, more);
    EXPECT_LE(LayerSeconds(with, PlanExperts(with)), LayerSeconds(without, PlanExperts(without)) * 1.0001);
  }
}

TEST(ExpertPlanner, NoHelperIsAskedForTooLittle) {
  const std::vector<HelperPlace> helpers = {Helper()};
  EXPECT_TRUE(PlanExperts(WithHelpers(Uses(2, 3), helpers)).helpers.empty());
  EXPECT_TRUE(PlanExperts(WithHelpers({}, helpers)).helpers.empty());
  const std::vector<HelperPlace> unknown = {HelperPlace()};
  EXPECT_TRUE(PlanExperts(WithHelpers(Uses(80, 200), unknown)).helpers.empty());
}

TEST(ExpertPlanner, HelpersGetNoMoreTokensThanTheBoardHolds) {
  const std::vector<ActivatedExpert> uses = Uses(80, 200);
  const std::vector<HelperPlace> helpers = {Helper(), Helper(), Helper()};
  PlannerInput input = WithHelpers(uses, helpers);
  input.max_helper_tokens = 2000;
  const ExpertPlan plan = PlanExperts(input);
  int64_t tokens = 0;
  for (size_t i = 0; i < plan.helpers.size(); ++i) tokens += plan.helpers[i] >= 0 ? uses[i].tokens : 0;
  EXPECT_GT(tokens, 0);
  EXPECT_LE(tokens, 2000);
}

TEST(ExpertPlanner, WhatIsOnItsWayGoesToNoHelper) {
  std::vector<ActivatedExpert> uses = Uses(80, 200);
  for (size_t i = 0; i < uses.size(); i += 3) uses[i].resident = kComing;
  const std::vector<HelperPlace> helpers = {Helper()};
  const ExpertPlan plan = PlanExperts(WithHelpers(uses, helpers));
  ASSERT_FALSE(plan.helpers.empty());
  for (size_t i = 0; i < uses.size(); i += 3) EXPECT_EQ(plan.helpers[i], -1);
  EXPECT_GT(HelpedBy(plan, 0), 0);
}

// Where products take longer than copies, a helper shares them: both devices end together.
TEST(ExpertPlanner, AHelperSharesTheProductsOfManyRows) {
  const std::vector<ActivatedExpert> uses = Uses(80, 4000);
  std::vector<HelperPlace> helpers = {Helper()};
  PlannerInput input = WithHelpers(uses, helpers);
  input.host_allowed = false;
  const double copy = input.bytes_per_expert / input.rates.link_bytes_per_second;
  input.rates.device_flops_per_second = 4000 * input.flops_per_token / (4 * copy);  // a product as long as four copies
  helpers[0].flops_per_second = input.rates.device_flops_per_second;
  helpers[0].contribution_seconds = 1e-9;
  input.helpers = helpers;
  const ExpertPlan even = PlanExperts(input);
  EXPECT_NEAR(HelpedBy(even, 0), 40, 3);
  // The worker has half of the experts, so its device has the more to do and its link the less.
  std::vector<ActivatedExpert> half = uses;
  for (size_t i = 0; i < half.size(); i += 2) half[i].resident = 1;
  input.uses = half;
  const ExpertPlan plan = PlanExperts(input);
  EXPECT_GT(HelpedBy(plan, 0), 34) << "nearly all that are absent";
}

TEST(ExpertPlanner, DevicesThatReachEachOtherNeedNoLinkForRows) {
  const HelperWay way = {.link_bytes_per_second = 50e9, .own_link_bytes_per_second = 40e9, .flops_per_second = 1e14};
  HelperWay near = way;
  near.device_to_device = true;
  const HelperPlace through_the_host = PlaceOf(way, 5760), from_device_to_device = PlaceOf(near, 5760);
  EXPECT_LT(from_device_to_device.fixed_seconds, through_the_host.fixed_seconds);
  EXPECT_LT(from_device_to_device.row_seconds, through_the_host.row_seconds);
  EXPECT_DOUBLE_EQ(through_the_host.row_seconds, 5760 / 40e9 + 5760 / 50e9);
  EXPECT_EQ(from_device_to_device.link_bytes_per_second, 50e9);
  EXPECT_EQ(from_device_to_device.flops_per_second, 1e14);
}

}  // namespace
}  // namespace ferry
