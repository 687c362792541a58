#pragma once

// What a machine's parts can do, as far as a plan needs it: measured once all workers are there (rates_probe), kept for the
// next start (rates_file), used by the planner and by predictions.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/expert_rates.h"

namespace ferry {

// Bytes of expert records that arrive in a worker's slots in a second. 0: it has no slots, or that was not measured.
struct LinkRates {
  double alone = 0;        // this link alone
  double together = 0;     // while the other workers' links run as well
  double beside_host = 0;  // while they run and the host computes experts
  bool operator==(const LinkRates&) const = default;
  // What to plan with, as far as it is known: the mean of the rates beside the host and without it, since the engine works for
  // half to two thirds of a layer and reads at its full rate for part of that. 54.3 and 39.1 GB/s measured gave 47.7 in prefill.
  double Planned() const { return beside_host > 0 ? (beside_host + together) / 2 : together > 0 ? together : alone; }
};

struct WorkerRates {
  LinkRates link;
  ExpertRates experts;           // on its own device; zeros: not measured
  double operation_seconds = 0;  // of a small operation behind others (kernels/expert_rates.h); 0: not measured
  double message_seconds = 0;    // of a message from the coordinator and its answer; 0: they share memory
  bool operator==(const WorkerRates&) const = default;
};

// As a worker reported them, and the coordinator measured them.
WorkerRates RatesOf(const v1::WorkerInfo& info);

struct MachineRates {
  ExpertRates host;               // the host's engine alone
  ExpertRates host_beside_links;  // while all links run; as `host` when there are none
  std::vector<WorkerRates> workers;
  absl::Time measured = absl::InfinitePast();  // never: given by hand
  bool operator==(const MachineRates&) const = default;
};

}  // namespace ferry
