#include "common/shm/paced_wait.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace ferry {
namespace {

// Done from `when` on; sleeps for real, and notes until when.
struct Waiting {
  absl::Time when;
  std::vector<absl::Time> slept_until;
  bool Wait(PacedWait* wait, absl::Time deadline) {
    slept_until.clear();
    return wait->Until(
        deadline, [this] { return absl::Now() >= when; },
        [this](absl::Time until) {
          slept_until.push_back(until);
          absl::SleepFor(std::min(until, when) - absl::Now());
        });
  }
};

TEST(PacedWait, WhatIsDoneIsNotWaitedFor) {
  PacedWait wait;
  Waiting done{.when = absl::InfinitePast(), .slept_until = {}};
  EXPECT_TRUE(done.Wait(&wait, absl::InfinitePast()));
  EXPECT_TRUE(done.slept_until.empty());
}

TEST(PacedWait, SleepsShortOfWhatTheLastWaitsTook) {
  PacedWait wait;
  for (int i = 0; i < 3; ++i) {
    Waiting first{.when = absl::Now() + absl::Milliseconds(20), .slept_until = {}};
    ASSERT_TRUE(first.Wait(&wait, absl::InfiniteFuture()));
    ASSERT_EQ(wait.Expected() > absl::ZeroDuration(), i == 2);  // the shortest of three
  }
  EXPECT_GE(wait.Expected(), absl::Milliseconds(20));
  const absl::Duration expected = wait.Expected();
  const absl::Time begin = absl::Now();
  Waiting next{.when = begin + expected, .slept_until = {}};
  ASSERT_TRUE(next.Wait(&wait, absl::InfiniteFuture()));
  ASSERT_FALSE(next.slept_until.empty());
  EXPECT_GE(next.slept_until.front(), begin + expected - kSpinBeforeSleep);
  EXPECT_LT(next.slept_until.front(), absl::InfiniteFuture());
}

TEST(PacedWait, AShortWaitAmongLongOnesIsNotSleptThrough) {
  PacedWait wait;
  for (const absl::Duration took : {absl::Milliseconds(20), absl::ZeroDuration(), absl::Milliseconds(20)}) {
    Waiting waiting{.when = absl::Now() + took, .slept_until = {}};
    ASSERT_TRUE(waiting.Wait(&wait, absl::InfiniteFuture()));
  }
  EXPECT_LT(wait.Expected(), absl::Milliseconds(20));
}

TEST(PacedWait, EndsAtItsDeadlineAndLearnsNothingFromThat) {
  PacedWait wait;
  Waiting never{.when = absl::InfiniteFuture(), .slept_until = {}};
  const absl::Time deadline = absl::Now() + absl::Milliseconds(5);
  EXPECT_FALSE(never.Wait(&wait, deadline));
  EXPECT_GE(absl::Now(), deadline);
  EXPECT_EQ(wait.Expected(), absl::ZeroDuration());
}

TEST(PacedWait, IsOverWhenSomethingComesSoonerThanExpected) {
  PacedWait wait;
  for (int i = 0; i < 3; ++i) {
    Waiting slow{.when = absl::Now() + absl::Milliseconds(20), .slept_until = {}};
    ASSERT_TRUE(slow.Wait(&wait, absl::InfiniteFuture()));
  }
  std::atomic<uint32_t> word = 0;
  std::thread other([&] {
    word = 1;
    FutexWake(word, FutexScope::kProcess);
  });
  EXPECT_TRUE(wait.Until(
      absl::InfiniteFuture(), [&] { return word == 1; },
      [&](absl::Time until) { FutexWait(word, 0, until, FutexScope::kProcess); }));
  other.join();
}

}  // namespace
}  // namespace ferry
