#include "common/exchange_cost.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

// An exchange costs 3 ms; each row costs 10 us on its way there and 10 us on its way back.
double Seconds(int64_t rows) { return 3e-3 + 20e-6 * static_cast<double>(rows); }

TEST(ExchangeCost, TellsTheExchangeFromItsRows) {
  ASSERT_OK_AND_ASSIGN(const ExchangeCost cost, MeasureExchange(1000, [](int64_t rows) { return Seconds(rows); }));
  EXPECT_NEAR(cost.exchange_seconds, 3e-3, 1e-9);
  EXPECT_NEAR(cost.row_seconds, 10e-6, 1e-12);
}

TEST(ExchangeCost, IsNotMisledByProbesThatABusyMachineDelays) {
  int probes = 0;
  ASSERT_OK_AND_ASSIGN(const ExchangeCost cost,
                       MeasureExchange(1000, [&](int64_t rows) { return Seconds(rows) + (++probes % 2 == 0 ? 16e-3 : 0); }));
  EXPECT_NEAR(cost.exchange_seconds, 3e-3, 1e-9);
}

TEST(ExchangeCost, SendsNoMoreRowsThanARequestHolds) {
  ASSERT_OK_AND_ASSIGN(const ExchangeCost cost, MeasureExchange(5, [](int64_t rows) -> absl::StatusOr<double> {
                         if (rows > 5) return InvalidArgument("%d rows", rows);
                         return Seconds(rows);
                       }));
  EXPECT_NEAR(cost.row_seconds, 10e-6, 1e-12);
  EXPECT_OK(MeasureExchange(1, [](int64_t rows) { return Seconds(rows); })) << "one row cannot tell what rows cost";
}

TEST(ExchangeCost, SeesTheRateOfANetworkThatLetsSomethingPassAtOnce) {
  // 100 rows pass in no time, and then 1,000 in a second.
  int64_t most = 0;
  const auto shaped = [&](int64_t rows) {
    most = std::max(most, rows);
    return 1e-3 + 2e-3 * static_cast<double>(std::max<int64_t>(0, rows - 100));
  };
  ASSERT_OK_AND_ASSIGN(const ExchangeCost cost, MeasureExchange(100'000, shaped));
  EXPECT_GT(cost.row_seconds, 0.5e-3);
  EXPECT_EQ(most, 256) << "no more rows than show it";
}

TEST(ExchangeCost, EndsWithTheFirstProbeThatFails) {
  int probes = 0;
  const auto cost = MeasureExchange(64, [&](int64_t) -> absl::StatusOr<double> {
    if (++probes == 3) return Unavailable("gone");
    return 1e-3;
  });
  EXPECT_THAT(cost, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(probes, 3);
}

}  // namespace
}  // namespace ferry
