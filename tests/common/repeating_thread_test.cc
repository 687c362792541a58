#include "common/repeating_thread.h"

#include <gtest/gtest.h>

#include <atomic>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

bool Reaches(const std::atomic<int>& calls, int wanted) {
  for (const Deadline end = Deadline::In(absl::Seconds(60)); !end.Passed(); absl::SleepFor(absl::Milliseconds(1))) {
    if (calls >= wanted) return true;
  }
  return false;
}

TEST(RepeatingThread, CallsAtOnceAndAgainAfterEachPause) {
  std::atomic<int> calls = 0;
  ASSERT_OK_AND_ASSIGN(const auto once, RepeatingThread::Start(absl::Hours(1), [&] { ++calls; }));
  EXPECT_TRUE(Reaches(calls, 1));
  ASSERT_OK_AND_ASSIGN(const auto often, RepeatingThread::Start(absl::Milliseconds(1), [&] { ++calls; }));
  EXPECT_TRUE(Reaches(calls, 5));
}

TEST(RepeatingThread, EndsWithinItsPauseAndCallsNoMore) {
  std::atomic<int> calls = 0;
  const Stopwatch watch;
  {
    ASSERT_OK_AND_ASSIGN(const auto thread, RepeatingThread::Start(absl::Hours(1), [&] { ++calls; }));
    EXPECT_TRUE(Reaches(calls, 1));
  }
  EXPECT_LT(watch.Elapsed(), absl::Minutes(30));
  EXPECT_EQ(calls, 1);
}

TEST(RepeatingThread, WaitsForACallThatIsUnderWay) {
  std::atomic<int> begun = 0, ended = 0;
  {
    ASSERT_OK_AND_ASSIGN(const auto thread, RepeatingThread::Start(absl::ZeroDuration(), [&] {
                           ++begun;
                           absl::SleepFor(absl::Milliseconds(5));
                           ++ended;
                         }));
    EXPECT_TRUE(Reaches(begun, 3));
  }
  EXPECT_EQ(begun, ended);
}

}  // namespace
}  // namespace ferry
