#include "common/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "common/futex.h"

namespace ferry {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kCacheLine = 64;

// Hardware threads this process may run on.
std::vector<int> UsableCpus() {
  // A set for 8192 of them: the fixed cpu_set_t ends at 1024.
  constexpr int kMaxCpus = 8192;
  cpu_set_t* set = CPU_ALLOC(kMaxCpus);
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCpus);
  std::vector<int> cpus;
  if (set != nullptr && sched_getaffinity(0, bytes, set) == 0) {
    for (int cpu = 0; cpu < kMaxCpus; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    }
  }
  CPU_FREE(set);
  return cpus;
}

// The cpus of a kernel list such as "0,4-6".
std::vector<int> ParseCpuList(const std::string& text) {
  std::vector<int> cpus;
  const char* at = text.c_str();
  while (*at >= '0' && *at <= '9') {
    char* end;
    const int64_t first = std::strtol(at, &end, 10);
    int64_t last = first;
    if (*end == '-') last = std::strtol(end + 1, &end, 10);
    for (int64_t cpu = first; cpu <= last && cpus.size() < 8192; ++cpu) cpus.push_back(static_cast<int>(cpu));
    at = *end == ',' ? end + 1 : end;
  }
  return cpus;
}

// Whole cores' worth of time that a container's quota allows, or a large number without one.
int CoresOfQuota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");  // "200000 100000", "max 100000"
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return kMaxThreads;
  return static_cast<int>(std::clamp(std::ceil(quota / period), 1.0, static_cast<double>(kMaxThreads)));
}

class ThreadPoolImpl final : public ThreadPool {
 public:
  explicit ThreadPoolImpl(int num_threads, int spin_microseconds)
      : num_threads_(num_threads), spin_(absl::Microseconds(spin_microseconds)) {}

  ~ThreadPoolImpl() override {
    stopping_.store(true, std::memory_order_relaxed);
    region_.fetch_add(1);
    FutexWake(region_, FutexScope::kProcess);
    for (std::thread& worker : workers_) worker.join();
  }

  // `cores` empty: threads are not pinned.
  absl::Status Start(const std::vector<int>& cores) {
    try {
      for (int thread = 1; thread < num_threads_; ++thread) {
        workers_.emplace_back([this, thread] { Work(thread); });
      }
    } catch (const std::system_error& error) {
      return ResourceExhausted("thread %d of %d cannot be started: %s", workers_.size() + 1, num_threads_,
                               error.what());
    }
    for (int thread = 1; thread < num_threads_ && !cores.empty(); ++thread) Pin(thread, cores[thread % cores.size()]);
    return absl::OkStatus();
  }

  int num_threads() const override { return num_threads_; }

  void ParallelFor(int64_t num_tasks, const std::function<void(int64_t, int)>& body) override {
    if (num_tasks <= 0) return;
    const std::lock_guard lock(one_region_);
    if (num_tasks == 1 || num_threads_ == 1) {
      for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
      return;
    }
    body_ = &body;
    num_tasks_ = num_tasks;
    unfinished_.store(num_tasks, std::memory_order_relaxed);
    unclaimed_.store(num_tasks, std::memory_order_release);  // from here on tasks are taken
    region_.fetch_add(1);
    // A worker counts itself among the sleepers before it looks at region_ a last time, so either it sees the new
    // region or we see it here (both sequentially consistent).
    if (const int sleepers = sleepers_.load(); sleepers > 0) {
      FutexWake(region_, FutexScope::kProcess, static_cast<int>(std::min<int64_t>(sleepers, num_tasks - 1)));
    }
    RunTasks(0);
    const auto done = [this] { return unfinished_.load() == 0; };
    if (SpinUntil(spin_, done)) return;
    // The last worker to finish raises finished_, but only for a caller that says it sleeps: it counts down before it
    // looks at caller_sleeps_, we look at the count after setting it.
    caller_sleeps_.store(true);
    while (!done()) {
      const uint32_t seen = finished_.load();
      if (done()) break;
      FutexWait(finished_, seen, absl::InfiniteFuture(), FutexScope::kProcess);
    }
    caller_sleeps_.store(false);
  }

 private:
  // Takes tasks until none is left. A successful claim keeps its region open until the task is counted as finished, so
  // body_ and num_tasks_ may be read after it, whichever region the claim fell into.
  void RunTasks(int thread) {
    int64_t finished = 0;
    int64_t left = unclaimed_.load(std::memory_order_relaxed);
    while (left > 0) {
      if (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_relaxed)) {
        continue;
      }
      (*body_)(num_tasks_ - left, thread);
      ++finished;
      left = unclaimed_.load(std::memory_order_relaxed);
    }
    if (finished == 0 || unfinished_.fetch_sub(finished) != finished || thread == 0) return;
    if (caller_sleeps_.load()) {
      finished_.fetch_add(1);
      FutexWake(finished_, FutexScope::kProcess);
    }
  }

  void Work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      const auto called = [&] { return region_.load(std::memory_order_acquire) != seen; };
      if (!SpinUntil(spin_, called)) {
        sleepers_.fetch_add(1);
        while (region_.load() == seen) FutexWait(region_, seen, absl::InfiniteFuture(), FutexScope::kProcess);
        sleepers_.fetch_sub(1);
      }
      seen = region_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_relaxed)) return;
      RunTasks(thread);
    }
  }

  void Pin(int thread, int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (core >= CPU_SETSIZE) return;
    CPU_SET(core, &set);
    // A core that has been taken from the process since is no reason to fail: the thread floats.
    pthread_setaffinity_np(workers_[thread - 1].native_handle(), sizeof(set), &set);
  }

  const int num_threads_;
  const absl::Duration spin_;
  std::mutex one_region_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_ = false;

  // Of the region that runs; written by its caller before unclaimed_, read by whoever has claimed one of its tasks.
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t num_tasks_ = 0;

  alignas(kCacheLine) std::atomic<int64_t> unclaimed_ = 0;
  alignas(kCacheLine) std::atomic<int64_t> unfinished_ = 0;
  alignas(kCacheLine) std::atomic<uint32_t> region_ = 0;  // increases with every region
  std::atomic<int> sleepers_ = 0;
  std::atomic<uint32_t> finished_ = 0;
  std::atomic<bool> caller_sleeps_ = false;
};

}  // namespace

std::vector<int> UsablePhysicalCores() {
  const std::vector<int> cpus = UsableCpus();
  std::vector<int> cores;
  for (const int cpu : cpus) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    std::getline(file, siblings);  // no such file: a core of its own
    bool first = true;
    for (const int sibling : ParseCpuList(siblings)) {
      if (sibling < cpu && std::binary_search(cpus.begin(), cpus.end(), sibling)) first = false;
    }
    if (first) cores.push_back(cpu);
  }
  return cores;
}

absl::StatusOr<std::unique_ptr<ThreadPool>> ThreadPool::Create(const ThreadPoolOptions& options) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return InvalidArgument("num_threads is %d, want 0 to %d", options.num_threads, kMaxThreads);
  }
  if (options.spin_microseconds < 0) {
    return InvalidArgument("spin_microseconds is %d, want 0 or more", options.spin_microseconds);
  }
  const std::vector<int> cores = UsablePhysicalCores();
  int num_threads = options.num_threads;
  if (num_threads == 0) num_threads = std::clamp(static_cast<int>(cores.size()), 1, CoresOfQuota());
  auto pool = std::make_unique<ThreadPoolImpl>(num_threads, options.spin_microseconds);
  RETURN_IF_ERROR(pool->Start(options.pin ? cores : std::vector<int>()));
  return std::unique_ptr<ThreadPool>(std::move(pool));
}

}  // namespace ferry
