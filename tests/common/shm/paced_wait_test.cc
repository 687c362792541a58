#include "common/shm/paced_wait.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "gtest/gtest.h"

namespace ferry {
namespace {

// Done from `when` on; sleeps for real, and notes until when.
struct Waiting {
  Deadline when;
  std::vector<Deadline> slept_until;
  bool Wait(PacedWait* wait, Deadline deadline) {
    slept_until.clear();
    return wait->Until(
        deadline, [this] { return when.Passed(); },
        [this](Deadline until) {
          slept_until.push_back(until);
          absl::SleepFor(std::min(until, when).Remaining());
        });
  }
};

TEST(PacedWait, WhatIsDoneIsNotWaitedFor) {
  PacedWait wait;
  Waiting done{.when = Deadline::In(absl::ZeroDuration()), .slept_until = {}};
  EXPECT_TRUE(done.Wait(&wait, Deadline::In(absl::ZeroDuration())));
  EXPECT_TRUE(done.slept_until.empty());
}

TEST(PacedWait, SleepsShortOfWhatTheLastWaitsTook) {
  PacedWait wait;
  for (int i = 0; i < 3; ++i) {
    Waiting first{.when = Deadline::In(absl::Milliseconds(20)), .slept_until = {}};
    ASSERT_TRUE(first.Wait(&wait, Deadline::Never()));
    ASSERT_EQ(wait.Expected() > absl::ZeroDuration(), i == 2);  // the shortest of three
  }
  EXPECT_GE(wait.Expected(), absl::Milliseconds(20));
  const absl::Duration expected = wait.Expected();
  const Deadline shorter = Deadline::In(expected - kSpinBeforeSleep);
  Waiting next{.when = Deadline::In(expected), .slept_until = {}};
  ASSERT_TRUE(next.Wait(&wait, Deadline::Never()));
  ASSERT_FALSE(next.slept_until.empty());
  EXPECT_GE(next.slept_until.front(), shorter);
  EXPECT_LT(next.slept_until.front(), Deadline::Never());
}

TEST(PacedWait, StaysAwakeWhereItIsTold) {
  for (const absl::Duration awake : {absl::ZeroDuration(), absl::Seconds(1)}) {
    PacedWait wait;
    wait.StayAwake(awake);
    for (int i = 0; i < 3; ++i) {
      Waiting first{.when = Deadline::In(absl::Milliseconds(20)), .slept_until = {}};
      ASSERT_TRUE(first.Wait(&wait, Deadline::Never()));
    }
    Waiting next{.when = Deadline::In(wait.Expected()), .slept_until = {}};
    ASSERT_TRUE(next.Wait(&wait, Deadline::Never()));
    EXPECT_EQ(next.slept_until.empty(), awake > absl::ZeroDuration());
  }
}

TEST(PacedWait, AShortWaitAmongLongOnesIsNotSleptThrough) {
  PacedWait wait;
  for (const absl::Duration took : {absl::Milliseconds(20), absl::ZeroDuration(), absl::Milliseconds(20)}) {
    Waiting waiting{.when = Deadline::In(took), .slept_until = {}};
    ASSERT_TRUE(waiting.Wait(&wait, Deadline::Never()));
  }
  EXPECT_LT(wait.Expected(), absl::Milliseconds(20));
}

TEST(PacedWait, EndsAtItsDeadlineAndLearnsNothingFromThat) {
  PacedWait wait;
  Waiting never{.when = Deadline::Never(), .slept_until = {}};
  const Deadline deadline = Deadline::In(absl::Milliseconds(5));
  EXPECT_FALSE(never.Wait(&wait, deadline));
  EXPECT_TRUE(deadline.Passed());
  EXPECT_EQ(wait.Expected(), absl::ZeroDuration());
}

TEST(PacedWait, IsOverWhenSomethingComesSoonerThanExpected) {
  PacedWait wait;
  for (int i = 0; i < 3; ++i) {
    Waiting slow{.when = Deadline::In(absl::Milliseconds(20)), .slept_until = {}};
    ASSERT_TRUE(slow.Wait(&wait, Deadline::Never()));
  }
  std::atomic<uint32_t> word = 0;
  std::thread other([&] {
    word = 1;
    FutexWake(word, FutexScope::kProcess);
  });
  EXPECT_TRUE(wait.Until(
      Deadline::Never(), [&] { return word == 1; }, [&](Deadline until) { FutexWait(word, 0, until, FutexScope::kProcess); }));
  other.join();
}

}  // namespace
}  // namespace ferry
