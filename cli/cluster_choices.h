#pragma once

// What `ferry plan --hosts` compares: the first host alone, with the engines of others, with workers on others, and with both.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/described_hosts.h"
#include "cli/model_options.h"
#include "cli/planned_machine.h"
#include "cli/predicted_model.h"
#include "coordinator/planning/decode_prediction.h"
#include "coordinator/planning/host_plan.h"
#include "coordinator/planning/prefill_prediction.h"

namespace ferry {

// A worker of a choice; their order is that of the layers.
struct ClusterWorker {
  size_t host = 0;
  int gpu = -1;  // of the host; -1: the worker computes on its cores
  WorkerPlacement placement;
  int64_t slots = 0;
  bool holds_all = false;  // the experts of its layers
};

struct ClusterChoice {
  std::string name;
  std::vector<ClusterWorker> workers;
  std::string layers;                 // --layers; empty: what the coordinator does without
  std::vector<HostUse> engines;       // of all hosts but the first
  std::vector<std::string> left_out;  // of each host: why its GPUs, or the worker on its cores, are left out; empty: they are not
  CacheShape cache;
  Fit fit;                                  // a choice that does not fit has no predictions
  std::vector<PrefillPrediction> prefills;  // of each length
  DecodePrediction decode;                  // behind an empty context
  double seconds = 0;                       // of a prompt of the last length and an answer of kAnswerTokens

  bool UsesWorkersElsewhere() const;
  // What the workers on a host's cores take of its memory.
  int64_t BytesOfCpuWorkers(size_t host) const;
  bool UsesEngines() const;
};

// The first is the first host alone. Errors: those of PredictedModel::Place, where no choice is possible.
absl::StatusOr<std::vector<ClusterChoice>> ClusterChoicesOf(const ModelOptions& options, const PredictedModel& model,
                                                            const std::vector<DescribedHost>& hosts,
                                                            const std::vector<int64_t>& lengths);

// The quickest of those that fit; one with more workers than an earlier one has to be quicker by kWorthAHost. Null: none fits.
const ClusterChoice* Quickest(const std::vector<ClusterChoice>& choices);

}  // namespace ferry
