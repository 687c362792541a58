#include "coordinator/experts/rate_correction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace ferry {
namespace {

constexpr double kMs = 1e-3;
constexpr int kLayers = 24;

// `steps` steps, each with a share in every layer that takes `times` as long as predicted.
void Steps(RateCorrection& correction, int steps, double times) {
  for (int step = 0; step < steps; ++step) {
    for (int layer = 0; layer < kLayers; ++layer) correction.Add(kMs, times * kMs);
    correction.EndStep();
  }
}

TEST(RateCorrection, IsNoneBeforeStepsHaveShownOne) {
  RateCorrection correction;
  EXPECT_EQ(correction.factor(), 1);
  EXPECT_FALSE(correction.known());
  correction.Add(kMs, 5 * kMs);
  EXPECT_EQ(correction.factor(), 1) << "the step is not over";
}

TEST(RateCorrection, FollowsAChangeThatThreeStepsShow) {
  RateCorrection correction;
  Steps(correction, 3, 1.5);
  EXPECT_NEAR(correction.factor(), 1.5, 1e-9);
  EXPECT_TRUE(correction.known());
  Steps(correction, 3, 0.5);
  EXPECT_NEAR(correction.factor(), 0.5, 1e-9);
}

TEST(RateCorrection, IgnoresOneOrTwoSlowStepsHoweverManyLayersTheyHave) {
  RateCorrection correction;
  Steps(correction, 5, 1.1);
  for (int i = 0; i < 4; ++i) {
    Steps(correction, i % 2 + 1, 1000);
    EXPECT_NEAR(correction.factor(), 1.1, 1e-9);
    Steps(correction, 3, 1.1);
  }
  RateCorrection fresh;
  Steps(fresh, 2, 1000);
  EXPECT_EQ(fresh.factor(), 1) << "the measurement stands for the steps before";
}

TEST(RateCorrection, StaysWithinItsLimits) {
  RateCorrection correction;
  Steps(correction, 50, 1e6);
  EXPECT_NEAR(correction.factor(), RateCorrection::kLargest, 1e-9);
  Steps(correction, 50, 1e-6);
  EXPECT_NEAR(correction.factor(), 1 / RateCorrection::kLargest, 1e-9);
}

TEST(RateCorrection, WeighsTheSharesOfAStepByTheirLength) {
  RateCorrection correction;
  for (int step = 0; step < 3; ++step) {
    correction.Add(9 * kMs, 9 * kMs);
    correction.Add(1 * kMs, 11 * kMs);
    correction.EndStep();
  }
  EXPECT_NEAR(correction.factor(), 2, 1e-9);
}

TEST(RateCorrection, RecoversWhenTheMachineIsQuietAgain) {
  RateCorrection correction;
  Steps(correction, 100, 8);
  Steps(correction, 3, 1);
  EXPECT_NEAR(correction.factor(), 1, 1e-9);
}

TEST(RateCorrection, OfAPlaceThatGetsNothingGoesBackUntilItIsTriedAgain) {
  RateCorrection correction;
  Steps(correction, 5, 4);
  for (int step = 0; step + 1 < RateCorrection::kPatience; ++step) correction.EndStep();
  EXPECT_NEAR(correction.factor(), 4, 1e-9);
  correction.EndStep();
  EXPECT_NEAR(correction.factor(), 2, 1e-9);
  for (int step = 0; step < 10 * RateCorrection::kPatience; ++step) correction.EndStep();
  EXPECT_NEAR(correction.factor(), 1, 0.01);
}

TEST(RateCorrection, CountsIdleStepsAnewAfterAShare) {
  RateCorrection correction;
  Steps(correction, 5, 4);
  for (int round = 0; round < 5; ++round) {
    for (int step = 0; step + 1 < RateCorrection::kPatience; ++step) correction.EndStep();
    Steps(correction, 1, 4);
  }
  EXPECT_NEAR(correction.factor(), 4, 1e-9);
}

TEST(RateCorrection, TakesNoNoticeOfTimesThatSayNothing) {
  RateCorrection correction;
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (int step = 0; step < RateCorrection::kSamples; ++step) {
    correction.Add(RateCorrection::kLeastSeconds / 2, kMs);  // fixed costs alone
    correction.Add(0, kMs);
    correction.Add(kMs, 0);
    correction.Add(kMs, -kMs);
    correction.Add(nan, kMs);
    correction.Add(kMs, nan);
    correction.Add(infinity, kMs);
    correction.Add(kMs, infinity);
    correction.EndStep();
  }
  EXPECT_EQ(correction.factor(), 1);
  EXPECT_FALSE(correction.known());
}

TEST(StepCorrections, KeepsDecodeAndLargerStepsApart) {
  StepCorrections corrections;
  Steps(corrections.Of(1), 3, 2);
  Steps(corrections.Of(512), 5, 0.5);
  EXPECT_NEAR(corrections.Of(8).factor(), 2, 1e-9);
  EXPECT_NEAR(corrections.Of(9).factor(), 0.5, 1e-9);
  EXPECT_NEAR(corrections.factors().few_rows, 2, 1e-9);
  EXPECT_NEAR(corrections.factors().many_rows, 0.5, 1e-9);
  EXPECT_EQ(StepCorrections().factors().many_rows, 0) << "nothing is known";
}

TEST(PredictedSeconds, SumsExpertsAndIsZeroWithoutRates) {
  const ExpertLayout layout = {.bytes = 1000};
  const ExpertRates rates = {.read_bytes_per_second = 1e6, .flops_per_second = 1e12};
  EXPECT_NEAR(
      PredictedSeconds(rates, layout, std::vector<ActivatedExpert>{{.expert = 0, .tokens = 1}, {.expert = 4, .tokens = 1}}), 2e-3,
      1e-9);
  EXPECT_EQ(PredictedSeconds({}, layout, std::vector<ActivatedExpert>{{.expert = 0, .tokens = 1}}), 0);
}

}  // namespace
}  // namespace ferry
