#include "kernels/expert_seconds.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

constexpr double kBytes = 1e6, kFlops = 1e6;  // of a record, and of a row
constexpr ExpertRates kLinear = {.read_bytes_per_second = 1e9, .flops_per_second = 1e9};

TEST(ExpertSeconds, WithoutACurveAreReadingAndTheOtherRowsOperations) {
  EXPECT_DOUBLE_EQ(ExpertSeconds(kLinear, kBytes, kFlops, 1), 1e-3);
  EXPECT_DOUBLE_EQ(ExpertSeconds(kLinear, kBytes, kFlops, 65), 1e-3 + 64e-3);
}

TEST(ExpertSeconds, WithACurveLieOnLinesBetweenItsPoints) {
  ExpertRates rates = kLinear;
  rates.flops_at_rows = {4e9, 8e9, 16e9, 32e9};  // 1, 2, 4 and 8 ms
  const auto seconds = [&](int64_t rows) { return ExpertSeconds(rates, kBytes, kFlops, rows); };
  EXPECT_DOUBLE_EQ(seconds(1), 1e-3);
  EXPECT_DOUBLE_EQ(seconds(4), 1e-3);
  EXPECT_DOUBLE_EQ(seconds(10), 1.5e-3);
  EXPECT_DOUBLE_EQ(seconds(16), 2e-3);
  EXPECT_DOUBLE_EQ(seconds(64), 4e-3);
  EXPECT_DOUBLE_EQ(seconds(256), 8e-3);
  EXPECT_DOUBLE_EQ(seconds(512), 16e-3) << "beyond the last point a row takes what it takes there";
}

TEST(ExpertSeconds, NeverFallWithMoreRowsWhateverWasMeasured) {
  ExpertRates rates = kLinear;
  rates.flops_at_rows = {1e9, 100e9, 100e9, 100e9};
  double before = 0;
  for (int64_t rows = 1; rows < 1000; ++rows) {
    const double seconds = ExpertSeconds(rates, kBytes, kFlops, rows);
    EXPECT_GE(seconds, before) << rows;
    before = seconds;
  }
}

}  // namespace
}  // namespace ferry
