#pragma once

// Measures a complete cluster before it serves: the host's engine alone, all links together, then both at once. Links and engine
// read the same memory, so each is slower beside the other, and a division between them has to use these lower rates.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/status.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/planning/machine_rates.h"
#include "kernels/ops.h"

namespace ferry {

class NodeIdentity;  // common/rpc/node_identity.h

struct ProbedWorker {
  WorkerId id;
  Incarnation incarnation;
  std::string address;
  bool has_slots = false;
  bool shares_memory = false;              // with the coordinator: its steps are no messages
  const NodeIdentity* identity = nullptr;  // for a worker of another host
  WorkerRates own;                         // what it measured at its start: link alone, experts on its device
};

// Has a worker copy records into its slots for about `time`; returns bytes a second. Waits for some seconds at most.
using LinkProbe = std::function<absl::StatusOr<double>(const ProbedWorker&, absl::Duration time)>;
absl::StatusOr<double> ProbeLinkOverGrpc(const ProbedWorker& worker, absl::Duration time);

// Returns the seconds that a message to a worker and its answer take; for workers that share no memory.
using MessageProbe = std::function<absl::StatusOr<double>(const ProbedWorker&)>;
absl::StatusOr<double> ProbeMessagesOverGrpc(const ProbedWorker& worker);

// Call it between epochs, while `engine` is idle. Measures the host twice and looks at the load by other programs; disturbed
// measurements set MachineRates::disturbed. Takes about 0.8 s without slots, 1.6 s with. Workers without slots keep link rates of
// 0. Errors: those of the probes, with the name of the worker.
absl::StatusOr<MachineRates> ProbeRates(Ops& engine, const ExpertStore& store, std::span<const ProbedWorker> workers,
                                        const LinkProbe& probe_link, const MessageProbe& probe_messages);

}  // namespace ferry
