#pragma once

// Whether a process can have the threads that it needs. Libraries that start threads of their own, gRPC's among them, end the
// process when they cannot: so it is tried first, and said by name.

#include "common/status.h"

namespace ferry {

// Threads of a process beside its thread pools on this machine; most are gRPC's. Measured with 2 cores: a coordinator has 24, a
// worker 17, a client 9.
int CoordinatorThreads();
int WorkerThreads();
int ClientThreads();

// Starts `count` threads that do nothing and ends them. ResourceExhausted: so many more cannot be started now; names the limit.
absl::Status CheckThreadsCanStart(int count);

// ResourceExhausted: the process may open fewer files than gRPC and a model need at least (ulimit -n).
absl::Status CheckDescriptorsAllowed();

}  // namespace ferry
