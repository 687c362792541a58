#include "common/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "common/cgroup_limits.h"
#include "common/deadline.h"
#include "common/shm/futex.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

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
  const std::optional<double> cores = CgroupLimits().Cores();
  if (!cores) return kMaxThreads;
  return static_cast<int>(std::clamp(std::ceil(*cores), 1.0, static_cast<double>(kMaxThreads)));
}

// Hardware threads of `cpu`'s core, itself among them.
std::vector<int> SiblingsOf(int cpu) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
  std::string text;
  std::getline(file, text);
  std::vector<int> siblings = ParseCpuList(text);
  if (siblings.empty()) siblings.push_back(cpu);  // no such file: a core of its own
  return siblings;
}

class ThreadPoolImpl final : public ThreadPool {
 public:
  explicit ThreadPoolImpl(int num_threads, absl::Duration spin) : num_threads_(num_threads), spin_(spin), seats_(num_threads) {}

  ~ThreadPoolImpl() override {
    stopping_.store(true, std::memory_order_relaxed);
    region_.fetch_add(1);
    for (Seat& seat : seats_) {
      Wake(seat);
      if (seat.thread.joinable()) seat.thread.join();
    }
  }

  // `cores` empty: threads are not pinned, and the caller is always in place of the first.
  absl::Status Start(const std::vector<int>& cores) {
    const int first = cores.empty() ? 1 : 0;
    for (int thread = first; thread < num_threads_ && num_threads_ > 1; ++thread) {
      absl::StatusOr<std::thread> started = StartThread([this, thread] { Work(thread); });
      RETURN_IF_ERROR(Annotate(started.status(), absl::StrFormat("a pool of %d threads", num_threads_)));
      seats_[thread].thread = *std::move(started);
    }
    for (int thread = first; thread < num_threads_ && num_threads_ > 1 && !cores.empty(); ++thread) {
      const int core = cores[thread % cores.size()];
      Pin(seats_[thread].thread, core);
      for (const int cpu : SiblingsOf(core)) {
        if (cpu >= static_cast<int>(seat_of_cpu_.size())) seat_of_cpu_.resize(cpu + 1, -1);
        if (seat_of_cpu_[cpu] < 0) seat_of_cpu_[cpu] = thread;
      }
    }
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
    const int own = SeatHere();
    body_ = &body;
    num_tasks_ = num_tasks;
    unfinished_.store(num_tasks, std::memory_order_relaxed);
    unclaimed_.store({.tasks = num_tasks, .caller = own}, std::memory_order_release);  // from here on tasks are taken
    region_.fetch_add(1);
    int64_t wanted = num_tasks - 1;
    for (int thread = 0; thread < num_threads_ && wanted > 0; ++thread) {
      if (thread == own) continue;
      Wake(seats_[thread]);
      --wanted;
    }
    RunTasks(own, /*is_caller=*/true);
    const auto done = [this] { return unfinished_.load() == 0; };
    if (SpinUntil(spin_, done)) return;
    // The last worker to finish raises finished_, but only for a caller that says it sleeps: it counts down before it
    // looks at caller_sleeps_, we look at the count after setting it.
    caller_sleeps_.store(true);
    while (!done()) {
      const uint32_t seen = finished_.load();
      if (done()) break;
      FutexWait(finished_, seen, Deadline::Never(), FutexScope::kProcess);
    }
    caller_sleeps_.store(false);
  }

 private:
  struct alignas(kCacheLine) Seat {
    std::atomic<uint32_t> asleep = 0;
    std::thread thread;
  };
  // Tasks that nobody has taken yet, and the seat that their region's caller has: the thread whose own it is takes none. Both
  // in one word, so that a claim is always one of a region to whose caller it has looked.
  struct Unclaimed {
    int64_t tasks : 48 = 0;
    int64_t caller : 16 = 0;
  };

  // The seat of the core that the calling thread runs on, or any where the pool has none there.
  int SeatHere() const {
    const int cpu = seat_of_cpu_.empty() ? -1 : sched_getcpu();
    if (cpu < 0 || cpu >= static_cast<int>(seat_of_cpu_.size())) return 0;
    return std::max(seat_of_cpu_[cpu], 0);
  }

  // A thread says that it sleeps before it looks at region_ a last time, so either it sees the new region or we see that it
  // sleeps (both sequentially consistent).
  static void Wake(Seat& seat) {
    if (seat.asleep.load() != 0 && seat.asleep.exchange(0) != 0) FutexWake(seat.asleep, FutexScope::kProcess);
  }

  // Takes tasks until none is left. A successful claim keeps its region open until the task is counted as finished, so
  // body_ and num_tasks_ may be read after it, whichever region the claim fell into.
  void RunTasks(int thread, bool is_caller) {
    int64_t finished = 0;
    Unclaimed left = unclaimed_.load(std::memory_order_relaxed);
    while (left.tasks > 0 && (is_caller || left.caller != thread)) {
      if (!unclaimed_.compare_exchange_weak(left, {.tasks = left.tasks - 1, .caller = left.caller}, std::memory_order_acq_rel,
                                            std::memory_order_relaxed)) {
        continue;
      }
      (*body_)(num_tasks_ - left.tasks, thread);
      ++finished;
      left = unclaimed_.load(std::memory_order_relaxed);
    }
    if (finished == 0 || unfinished_.fetch_sub(finished) != finished || is_caller) return;
    if (caller_sleeps_.load()) {
      finished_.fetch_add(1);
      FutexWake(finished_, FutexScope::kProcess);
    }
  }

  void Work(int thread) {
    Seat& seat = seats_[thread];
    uint32_t seen = 0;
    for (;;) {
      const auto called = [&] { return region_.load(std::memory_order_acquire) != seen; };
      if (!SpinUntil(spin_, called)) {
        seat.asleep.store(1);
        while (region_.load() == seen) FutexWait(seat.asleep, 1, Deadline::Never(), FutexScope::kProcess);
        seat.asleep.store(0);
      }
      seen = region_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_relaxed)) return;
      RunTasks(thread, /*is_caller=*/false);
    }
  }

  static void Pin(std::thread& thread, int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (core >= CPU_SETSIZE) return;
    CPU_SET(core, &set);
    // A core that has been taken from the process since is no reason to fail: the thread floats.
    pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
  }

  const int num_threads_;
  const absl::Duration spin_;
  std::vector<int> seat_of_cpu_;  // -1: none; empty where threads are not pinned
  std::mutex one_region_;
  std::atomic<bool> stopping_ = false;

  // The running region's. Its caller writes them before unclaimed_; threads read them after they have claimed a task of it.
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t num_tasks_ = 0;

  alignas(kCacheLine) std::atomic<Unclaimed> unclaimed_ = Unclaimed();
  alignas(kCacheLine) std::atomic<int64_t> unfinished_ = 0;
  alignas(kCacheLine) std::atomic<uint32_t> region_ = 0;  // increases with every region
  std::atomic<uint32_t> finished_ = 0;
  std::atomic<bool> caller_sleeps_ = false;
  std::vector<Seat> seats_;  // last: its threads use all the others
};

}  // namespace

std::vector<int> UsablePhysicalCores() {
  const std::vector<int> cpus = UsableCpus();
  std::vector<int> cores;
  for (const int cpu : cpus) {
    bool first = true;
    for (const int sibling : SiblingsOf(cpu)) {
      if (sibling < cpu && std::binary_search(cpus.begin(), cpus.end(), sibling)) first = false;
    }
    if (first) cores.push_back(cpu);
  }
  return cores;
}

int DefaultThreads() { return std::clamp(static_cast<int>(UsablePhysicalCores().size()), 1, CoresOfQuota()); }

int MaxUsefulThreads() {
  constexpr int kFew = 16, kPerCpu = 4;
  return std::max(kFew, kPerCpu * static_cast<int>(UsableCpus().size()));
}

absl::StatusOr<std::unique_ptr<ThreadPool>> ThreadPool::Create(const ThreadPoolOptions& options) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return InvalidArgument("num_threads is %d, want 0 to %d", options.num_threads, kMaxThreads);
  }
  if (options.spin < absl::ZeroDuration()) {
    return InvalidArgument("spin is %s, want 0 or more", absl::FormatDuration(options.spin));
  }
  // Threads that spin for each other's results take turns on too few cores: with hundreds a start takes minutes.
  const int most = MaxUsefulThreads();
  if (options.num_threads > most) {
    return InvalidArgument("%d threads are too many for the %d hardware threads that this process may use: want at most %d",
                           options.num_threads, UsableCpus().size(), most);
  }
  const std::vector<int> cores = UsablePhysicalCores();
  int num_threads = options.num_threads;
  if (num_threads == 0) num_threads = DefaultThreads();
  auto pool = std::make_unique<ThreadPoolImpl>(num_threads, options.spin);
  RETURN_IF_ERROR(pool->Start(options.pin ? cores : std::vector<int>()));
  return std::unique_ptr<ThreadPool>(std::move(pool));
}

}  // namespace ferry
