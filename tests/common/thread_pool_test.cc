#include "common/thread_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

std::unique_ptr<ThreadPool> Pool(int num_threads, absl::Duration spin = kSpinBeforeSleep) {
  return *ThreadPool::Create({.num_threads = num_threads, .pin = false, .spin = spin});
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int num_threads : {1, 2, 5}) {
    const auto pool = Pool(num_threads);
    for (const int64_t num_tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(num_tasks);
      pool->ParallelFor(num_tasks, [&](int64_t task, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, num_threads);
        ++runs[task];
      });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, TakesTasksInOrder) {
  const auto pool = Pool(1);
  std::vector<int64_t> order;
  pool->ParallelFor(5, [&](int64_t task, int) { order.push_back(task); });
  EXPECT_THAT(order, testing::ElementsAre(0, 1, 2, 3, 4));
}

TEST(ThreadPool, LetsEveryThreadWork) {
  const auto pool = Pool(3);
  // Tasks wait for each other, so one thread alone would never end.
  std::atomic<int> arrived = 0;
  std::vector<std::atomic<bool>> seen(3);
  pool->ParallelFor(3, [&](int64_t, int thread) {
    seen[thread] = true;
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
  });
  for (const std::atomic<bool>& thread : seen) EXPECT_TRUE(thread);
}

TEST(ThreadPool, FinishesWhatATaskWroteBeforeItReturns) {
  // No atomics: a data race here is one for ThreadSanitizer to report.
  for (const absl::Duration spin : {absl::ZeroDuration(), kSpinBeforeSleep}) {
    const auto pool = Pool(4, spin);
    std::vector<int64_t> values(64);
    for (int64_t round = 1; round <= 500; ++round) {
      pool->ParallelFor(64, [&](int64_t task, int) { values[task] += round; });
    }
    for (const int64_t value : values) EXPECT_EQ(value, 500 * 501 / 2);
  }
}

TEST(ThreadPool, WakesThreadsThatSleep) {
  const auto pool = Pool(3, /*spin=*/absl::ZeroDuration());
  for (int round = 0; round < 20; ++round) {
    absl::SleepFor(absl::Milliseconds(1));
    std::atomic<int> arrived = 0;
    pool->ParallelFor(3, [&](int64_t, int) {
      ++arrived;
      while (arrived < 3) std::this_thread::yield();
    });
  }
}

TEST(ThreadPool, TakesCallersOneAtATime) {
  const auto pool = Pool(2);
  std::vector<int64_t> sums(4);
  std::vector<std::thread> callers;
  for (int64_t& sum : sums) {
    callers.emplace_back([&pool, &sum] {
      for (int round = 0; round < 100; ++round) {
        std::vector<int64_t> parts(8);
        pool->ParallelFor(8, [&](int64_t task, int) { parts[task] = task; });
        sum += std::accumulate(parts.begin(), parts.end(), int64_t{0});
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_THAT(sums, testing::Each(2800));
}

TEST(ThreadPool, PinsItsThreadsToUsableCores) {
  const std::vector<int> cores = UsablePhysicalCores();
  ASSERT_OK_AND_ASSIGN(const auto pool, ThreadPool::Create({.num_threads = 3}));
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> arrived = 0;
  pool->ParallelFor(3, [&](int64_t, int thread) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
    if (std::this_thread::get_id() == caller) return;  // the caller's own thread is left as it is
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
    EXPECT_EQ(CPU_COUNT(&set), 1);
    EXPECT_TRUE(CPU_ISSET(cores[thread % cores.size()], &set));
  });
}

// Sets the calling thread's mask, and restores it on destruction.
class RunOn {
 public:
  explicit RunOn(int cpu) {
    sched_getaffinity(0, sizeof(before_), &before_);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
  }
  ~RunOn() { sched_setaffinity(0, sizeof(before_), &before_); }

 private:
  cpu_set_t before_;
};

TEST(ThreadPool, UsesEveryCoreWhereverItsCallerRuns) {
  const std::vector<int> cores = UsablePhysicalCores();
  ASSERT_OK_AND_ASSIGN(const auto pool, ThreadPool::Create({.num_threads = static_cast<int>(cores.size())}));
  for (const int caller_core : cores) {
    const RunOn run_on(caller_core);
    std::vector<std::atomic<int>> core_of(cores.size());
    std::atomic<size_t> arrived = 0;
    pool->ParallelFor(static_cast<int64_t>(cores.size()), [&](int64_t, int thread) {
      core_of[thread] = sched_getcpu();
      ++arrived;
      while (arrived < cores.size()) std::this_thread::yield();
    });
    for (size_t i = 0; i < cores.size(); ++i) EXPECT_EQ(core_of[i], cores[i]) << "called on core " << caller_core;
  }
}

TEST(ThreadPool, UsesOneThreadPerPhysicalCoreUnlessTold) {
  ASSERT_OK_AND_ASSIGN(const auto pool, ThreadPool::Create({}));
  EXPECT_GE(pool->num_threads(), 1);
  EXPECT_LE(pool->num_threads(), static_cast<int>(UsablePhysicalCores().size()));
}

TEST(ThreadPool, RefusesNumbersOutOfRange) {
  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(ThreadPool::Create({.num_threads = -1}), StatusIs(code, testing::HasSubstr("num_threads is -1")));
  if (MaxUsefulThreads() < kMaxThreads) {
    EXPECT_THAT(ThreadPool::Create({.num_threads = MaxUsefulThreads() + 1}),
                StatusIs(code, testing::HasSubstr("are too many for the")));
  }
  EXPECT_THAT(ThreadPool::Create({.num_threads = 5000}), StatusIs(code, testing::HasSubstr("num_threads is 5000")));
  EXPECT_THAT(ThreadPool::Create({.num_threads = 1, .spin = -absl::Microseconds(1)}), StatusIs(code, testing::HasSubstr("spin")));
}

TEST(UsablePhysicalCores, AreDistinctAndAllowed) {
  const std::vector<int> cores = UsablePhysicalCores();
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  ASSERT_FALSE(cores.empty());
  EXPECT_EQ(std::set<int>(cores.begin(), cores.end()).size(), cores.size());
  for (const int core : cores) EXPECT_TRUE(CPU_ISSET(core, &set));
}

}  // namespace
}  // namespace ferry
