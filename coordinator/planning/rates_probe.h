#pragma once

// Measures a complete cluster before it serves: the host's engine alone, all links together, then both at once. Link and host
// take their bytes from the same memory, so what each reaches beside the other is less than alone, and that is what a division
// between them has to use.

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

struct ProbedWorker {
  WorkerId id;
  Incarnation incarnation;
  std::string address;
  bool has_slots = false;
  bool shares_memory = false;  // with the coordinator: its steps are no messages
  WorkerRates own;             // what it measured at its start: link alone, experts on its device
};

// Copies records into a worker's slots for about `time`, and answers bytes a second. Waits for some seconds at most.
using LinkProbe = std::function<absl::StatusOr<double>(const ProbedWorker&, absl::Duration time)>;
absl::StatusOr<double> ProbeLinkOverGrpc(const ProbedWorker& worker, absl::Duration time);

// Seconds of a message to a worker and its answer; for those that share no memory.
using MessageProbe = std::function<absl::StatusOr<double>(const ProbedWorker&)>;
absl::StatusOr<double> ProbeMessagesOverGrpc(const ProbedWorker& worker);

// `engine` computes nothing else meanwhile, and no epoch lasts. Takes about half a second without slots, 1.3 s with. Workers
// without slots keep link rates of 0. Errors: those of the probes; a worker that does not answer is named.
absl::StatusOr<MachineRates> ProbeRates(Ops& engine, const ExpertStore& store, std::span<const ProbedWorker> workers,
                                        const LinkProbe& probe_link, const MessageProbe& probe_messages);

}  // namespace ferry
