#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/close.h"

namespace ferry {
namespace {

TEST(Rope, TurnsPlainlyWithoutYarn) {
  const RopeConfig config = {.freq_base = 10000, .num_dims = 8};
  EXPECT_TRUE(Close(RopeFrequencies(config), std::vector<double>{1, 0.1, 0.01, 0.001}, 0, 1e-14));
}

TEST(Rope, YarnKeepsFastPairsAndSlowsSlowOnes) {
  const RopeConfig config = {.freq_base = 150000, .num_dims = 64, .yarn_factor = 32, .yarn_original_context = 4096};
  const std::vector<double> got = RopeFrequencies(config);
  ASSERT_EQ(got.size(), 32u);
  RopeConfig plain = config;
  plain.yarn_factor = 1;
  const std::vector<double> full = RopeFrequencies(plain);
  // By hand: 64 ln(4096 / (32 * 2 pi)) / (2 ln 150000) = 8.0928 and 64 ln(4096 / (2 pi)) / (2 ln 150000) = 17.3980.
  for (size_t i = 0; i <= 8; ++i) EXPECT_DOUBLE_EQ(got[i], full[i]) << i;
  for (size_t i = 18; i < 32; ++i) EXPECT_DOUBLE_EQ(got[i], full[i] / 32) << i;
  // Not rounded: pair 9 is (9 - 8.0928) / (17.3980 - 8.0928) of the way.
  const double slowed = (9 - 8.0928) / (17.3980 - 8.0928);
  EXPECT_NEAR(got[9] / full[9], (1 - slowed) + slowed / 32, 1e-4);
  EXPECT_GT(slowed, 0.09);
}

TEST(Rope, RampsBetweenWholePairsWhereTheModelSaysSo) {
  RopeConfig config = {.freq_base = 150000, .num_dims = 64, .yarn_factor = 32, .yarn_original_context = 4096};
  config.yarn_whole_dims = true;
  const std::vector<double> got = RopeFrequencies(config);
  config.yarn_factor = 1;
  const std::vector<double> full = RopeFrequencies(config);
  // The ends of the test above, 8.0928 and 17.3980, become 8 and 18.
  EXPECT_DOUBLE_EQ(got[8], full[8]);
  EXPECT_NEAR(got[9] / full[9], 0.9 + 0.1 / 32, 1e-12);
  EXPECT_NEAR(got[17] / full[17], 0.1 + 0.9 / 32, 1e-12);
  EXPECT_DOUBLE_EQ(got[18], full[18] / 32);
}

TEST(Rope, HoldsTheRampInsideThePairs) {
  // beta_fast so high that the ramp would start below pair 0: it starts there.
  const RopeConfig config = {.freq_base = 10000,
                             .num_dims = 8,
                             .yarn_factor = 4,
                             .yarn_original_context = 64,
                             .yarn_beta_fast = 1000,
                             .yarn_beta_slow = 1};
  const std::vector<double> got = RopeFrequencies(config);
  EXPECT_DOUBLE_EQ(got[0], 1);
  const double last = 8 * std::log(64 / (2 * 3.14159265358979323846)) / (2 * std::log(10000.0));  // 1.008
  EXPECT_NEAR(got[1], 0.1 * ((1 - 1 / last) + 1 / last / 4), 1e-12);
  EXPECT_DOUBLE_EQ(got[2], 0.01 / 4);
}

}  // namespace
}  // namespace ferry
