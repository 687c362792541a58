#pragma once

// Threads that run the kernels of one process, pinned to cores. A region is a few microseconds to start: waiting threads
// spin shortly, then sleep, since on a small machine the coordinator's and the workers' threads share the same cores.
//
// The caller works too, in place of the pool's own thread for the core that the caller runs on. In place of a fixed one, it would
// often share a core with a pool thread while another core idles: a thread woken by another process runs on any free core, and
// nothing moves a running thread (docs/measurements/cpu.md: 2.0 instead of 1.0 ms for the experts
// of a layer).

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/shm/futex.h"
#include "common/status.h"

namespace ferry {

inline constexpr int kMaxThreads = 1024;  // of one pool

struct ThreadPoolOptions {
  int num_threads = 0;  // 0: DefaultThreads()
  bool pin = true;      // thread i to the i-th of those cores
  absl::Duration spin = kSpinBeforeSleep;
};

class ThreadPool {
 public:
  // InvalidArgument: a number out of range, or far more threads than this process may use. ResourceExhausted: they cannot be
  // started.
  static absl::StatusOr<std::unique_ptr<ThreadPool>> Create(const ThreadPoolOptions& options);
  virtual ~ThreadPool() = default;

  virtual int num_threads() const = 0;
  // Calls body(task, thread) for every task in [0, num_tasks), thread in [0, num_threads()); returns when all are done. Tasks
  // are taken in order, so consecutive ones should touch consecutive memory. No two run at once with the same `thread`; the
  // caller takes part as one of them. One region at a time: calls from several threads wait for each other. `body` must not
  // throw and must not call ParallelFor.
  virtual void ParallelFor(int64_t num_tasks, const std::function<void(int64_t task, int thread)>& body) = 0;
};

// Physical cores (one hardware thread of each) that this process may use, by the kernel's topology files.
std::vector<int> UsablePhysicalCores();

// The number of threads that 0 chooses: one a usable physical core, limited by the CPU quota of the process's cgroups.
int DefaultThreads();
// What ThreadPool::Create accepts at most on this machine.
int MaxUsefulThreads();

}  // namespace ferry
