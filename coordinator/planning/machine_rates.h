#pragma once

// The rates of a machine's parts that a plan needs. rates_probe measures them once all workers have joined, rates_file keeps them
// for the next start, the planner and predictions use them.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/expert_rates.h"

namespace ferry {

// Bytes of expert records a second into a worker's slots. 0: it has no slots, or the rate was not measured.
struct LinkRates {
  double alone = 0;        // this link alone
  double together = 0;     // while the other workers' links run too
  double beside_host = 0;  // while they run and the host computes experts
  bool operator==(const LinkRates&) const = default;
  // The rate to plan with: the mean of `together` and `beside_host`, since the engine works for half to two thirds of a layer and
  // reads at its full rate for part of that. Unmeasured ones are left out. 54.3 and 39.1 GB/s measured gave 47.7 in prefill.
  double Planned() const { return beside_host > 0 ? (beside_host + together) / 2 : together > 0 ? together : alone; }
};

struct WorkerRates {
  LinkRates link;
  ExpertRates experts;           // on its own device; zeros: not measured
  double operation_seconds = 0;  // a small operation queued behind others (kernels/expert_rates.h); 0: not measured
  double message_seconds = 0;    // a message from the coordinator and its answer; 0: they share memory
  bool operator==(const WorkerRates&) const = default;
};

// The rates that a worker reported and that the coordinator measured of it.
WorkerRates RatesOf(const v1::WorkerInfo& info);

struct MachineRates {
  ExpertRates host;               // the host's engine alone
  ExpertRates host_beside_links;  // while all links run; equal to `host` without links
  std::vector<WorkerRates> workers;
  absl::Time measured = absl::InfinitePast();  // InfinitePast: given by hand
  std::string disturbed;                       // why later starts must not use these rates; empty: they may
  bool operator==(const MachineRates&) const = default;
};

}  // namespace ferry
