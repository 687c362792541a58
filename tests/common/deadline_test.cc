#include "common/deadline.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/paced_wait.h"
#include "common/shm/ring_wait.h"
#include "tests/testing/status_matchers.h"

namespace {

std::atomic<int64_t> date_shift{0};  // seconds

}  // namespace

// The C library's, in this program: the date can be moved, as by somebody who sets the machine's clock.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const int result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (clock == CLOCK_REALTIME) time->tv_sec += date_shift;
  return result;
}

namespace ferry {
namespace {

// Moves the date by `shift` again and again until it is destroyed.
class MovingDate {
 public:
  explicit MovingDate(absl::Duration shift)
      : thread_([this, shift] {
          for (int64_t times = 1; !end_; ++times) {
            date_shift = times * absl::ToInt64Seconds(shift);
            absl::SleepFor(absl::Milliseconds(5));
          }
        }) {}
  ~MovingDate() {
    end_ = true;
    thread_.join();
    date_shift = 0;
  }

 private:
  std::atomic<bool> end_{false};
  std::thread thread_;
};

// A wait of 60 ms that nothing ends but its deadline. Each of these is a kind of wait in Ferry.
struct Case {
  const char* name;
  std::function<void(Deadline)> wait;
};

const std::atomic<uint32_t> kNobodyChangesThis{7};

const Case kCases[] = {
    {"AFutex",
     [](Deadline deadline) {
       while (!deadline.Passed()) FutexWait(kNobodyChangesThis, 7, deadline, FutexScope::kShared);
     }},
    {"Spinning", [](Deadline deadline) { SpinUntil(deadline.Remaining(), [] { return false; }); }},
    {"APacedWait",
     [](Deadline deadline) {
       PacedWait().Until(
           deadline, [] { return false; }, [](Deadline until) { FutexWait(kNobodyChangesThis, 7, until, FutexScope::kProcess); });
     }},
    {"ARing",
     [](Deadline deadline) { RingWait("over").Until(kNobodyChangesThis, deadline, [] { return false; }).IgnoreError(); }},
    {"ACondition",
     [](Deadline deadline) {
       std::mutex mutex;
       std::condition_variable changed;
       std::unique_lock lock(mutex);
       changed.wait_until(lock, deadline.time(), [] { return false; });
     }},
    {"ARemoteCall",
     [](Deadline deadline) {
       const gpr_timespec end = gpr_convert_clock_type(RpcDeadline(deadline), GPR_CLOCK_MONOTONIC);
       while (gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), end) < 0) absl::SleepFor(absl::Milliseconds(1));
     }},
};

class Waits : public ::testing::TestWithParam<Case> {
 protected:
  void ExpectOnTime() {
    const Deadline::Clock::time_point start = Deadline::Clock::now();
    GetParam().wait(Deadline::In(absl::Milliseconds(60)));
    const auto took = Deadline::Clock::now() - start;
    EXPECT_GE(took, std::chrono::milliseconds(59));
    EXPECT_LT(took, std::chrono::seconds(30)) << "the date moves by an hour";
  }
};

TEST_P(Waits, EndNoSoonerWhenTheDateGoesForward) {
  const MovingDate date(absl::Hours(1));
  ExpectOnTime();
}

TEST_P(Waits, EndNoLaterWhenTheDateGoesBack) {
  const MovingDate date(-absl::Hours(1));
  ExpectOnTime();
}

INSTANTIATE_TEST_SUITE_P(All, Waits, ::testing::ValuesIn(kCases), [](const auto& info) { return info.param.name; });

TEST(DateOfThisTest, Moves) {
  const absl::Time before = absl::Now();
  date_shift = 3600;
  const absl::Duration moved = absl::Now() - before;
  date_shift = 0;
  EXPECT_GE(moved, absl::Hours(1));
  EXPECT_LT(moved, absl::Hours(2));
}

TEST(Deadline, IsNowForTimesThatHavePassed) {
  EXPECT_TRUE(Deadline::In(absl::ZeroDuration()).Passed());
  EXPECT_TRUE(Deadline::In(-absl::InfiniteDuration()).Passed());
  EXPECT_LE(Deadline::In(-absl::Seconds(1)).Remaining(), absl::ZeroDuration());
}

TEST(Deadline, NeverComesForTimesThatNobodyAwaits) {
  EXPECT_EQ(Deadline::In(absl::InfiniteDuration()), Deadline::Never());
  EXPECT_EQ(Deadline::Never().Remaining(), absl::InfiniteDuration());
  EXPECT_FALSE(Deadline::In(absl::Hours(24 * 365 * 90)).Passed());
  EXPECT_LT(Deadline::In(absl::Hours(24 * 365 * 90)), Deadline::Never());
}

TEST(Stopwatch, RestartsFromZero) {
  Stopwatch watch;
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_GE(watch.Restart(), absl::Milliseconds(20));
  EXPECT_LT(watch.Elapsed(), absl::Milliseconds(20) + absl::Seconds(10));
}

}  // namespace
}  // namespace ferry
