#include "common/thread_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "common/cgroup_limits.h"
#include "common/library_threads.h"

namespace ferry {
namespace {

// gRPC has more threads on larger machines.
int ByCores(int with_two) { return with_two + std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2 - 1, 0, 16); }

}  // namespace

std::string ThreadLimitInWords(int count) {
  for (const CgroupLimit& limit : CgroupLimits().Processes()) {
    if (limit.limit - limit.used < count) {
      return absl::StrFormat("the cgroup %s allows %d processes and threads, and %d are running (pids.max)", limit.group,
                             limit.limit, limit.used);
    }
  }
  rlimit user;
  if (::getrlimit(RLIMIT_NPROC, &user) == 0 && user.rlim_cur != RLIM_INFINITY) {
    return absl::StrFormat("this user may have %d processes and threads (ulimit -u)", user.rlim_cur);
  }
  return "the system refuses another";
}

absl::Status CheckDescriptorsAllowed() {
  constexpr rlim_t kLeast = 32;
  rlimit files;
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= kLeast) return absl::OkStatus();
  return ResourceExhausted("this process may have %d files open, and needs %d: raise the limit (ulimit -n)", files.rlim_cur,
                           kLeast);
}

int CoordinatorThreads() { return ByCores(36); }
int WorkerThreads() { return ByCores(19); }
int ClientThreads() { return ByCores(11); }
int GatewayThreads() { return ByCores(18); }

// An estimate: eight with 2 cores.
absl::Status CheckServerThreadsCanStart() { return CheckThreadsCanStart(ByCores(8)); }

absl::StatusOr<std::thread> StartThread(std::function<void()> body) {
  const HandlesMissingThreads handles;
  try {
    return std::thread(std::move(body));
  } catch (const std::system_error&) {
    return ResourceExhausted("another thread is needed and cannot be started: %s", ThreadLimitInWords(1));
  }
}

absl::Status CheckThreadsCanStart(int count) {
  std::atomic<bool> end{false};
  std::vector<std::jthread> threads;
  threads.reserve(static_cast<size_t>(std::max(count, 0)));
  std::string refused;
  const HandlesMissingThreads handles;
  try {
    for (int i = 0; i < count; ++i) threads.emplace_back([&end] { end.wait(false); });
  } catch (const std::system_error& error) {
    refused = absl::StrFormat("%d more threads are needed, and only %d can be started: %s", count, threads.size(),
                              ThreadLimitInWords(count));
  }
  end = true;
  end.notify_all();
  threads.clear();
  return refused.empty() ? absl::OkStatus() : absl::ResourceExhaustedError(refused);
}

}  // namespace ferry
