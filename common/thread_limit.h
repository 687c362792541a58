#pragma once

// Whether a process can have the threads that it needs. Libraries that start threads of their own, gRPC's among them, end the
// process when they cannot: so it is tried first, and said by name. Threads of Ferry's own start by StartThread, whose failure is
// an error like any other.

#include <functional>
#include <thread>

#include "common/status.h"

namespace ferry {

// Threads of a process beside its thread pools on this machine; most are gRPC's. Measured with 2 cores: a coordinator has 24, a
// worker 17, a client 9. A gateway had 14 under 30 requests (/proc/PID/task); its 18 leaves room.
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

// ResourceExhausted: the process may open fewer files than gRPC and a model need at least (ulimit -n).
absl::Status CheckDescriptorsAllowed();

}  // namespace ferry
