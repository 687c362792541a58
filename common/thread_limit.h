#pragma once

// Whether a process can have the threads that it needs. Libraries do not go on without threads of their own
// (common/library_threads.h), so each program tries at its start whether it can have them. Threads of Ferry's own start by
// StartThread, whose failure is an error like any other.

#include <functional>
#include <string>
#include <thread>

#include "common/status.h"

namespace ferry {

// Threads of a process beside its thread pools on this machine; most are gRPC's, which starts some of them under load alone.
// Counted with 2 cores under 30 requests at once (/proc/PID/task): a coordinator had 32, a worker 16, a gateway 15, `ferry serve`
// 11. The numbers leave room.
int CoordinatorThreads();
int WorkerThreads();
int ClientThreads();
int GatewayThreads();

// Starts `count` threads that do nothing and ends them. ResourceExhausted: so many more cannot be started now; names the limit.
absl::Status CheckThreadsCanStart(int count);

// The same for the threads of a gRPC server: gRPC ends the process when it cannot start one.
absl::Status CheckServerThreadsCanStart();

// A thread that runs `body`. ResourceExhausted: none can be started now; names the limit.
absl::StatusOr<std::thread> StartThread(std::function<void()> body);

// What keeps `count` more threads from starting: "the cgroup /ferry.slice allows 20 processes and threads, and 12 are running".
std::string ThreadLimitInWords(int count);

// ResourceExhausted: the process may open fewer files than gRPC and a model need at least (ulimit -n).
absl::Status CheckDescriptorsAllowed();

}  // namespace ferry
