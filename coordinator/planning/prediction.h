#pragma once

// How fast a placement will be, before anything is loaded: what the runtime does, layer by layer, with this model's own router
// and this machine's rates. Pure functions with a fixed seed.

#include <cstdint>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/planning/machine_rates.h"
#include "coordinator/planning/placement.h"

namespace ferry {

// The probability of each expert to be among a token's top_k, a vector a layer. A token's router logits are taken as normal
// numbers around the router's biases, with the deviation that an RMS-normed input of unit variance gives them (the norm of the
// expert's router row times the norm weights), of which a share that grows with depth is the same for all tokens. Sampled with a
// fixed seed.
absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config);

// Experts of a layer that `tokens` tokens activate, on average: sum of 1 - (1 - p)^tokens.
double ExpectedActivated(const std::vector<double>& probabilities, int64_t tokens);

struct PrefillPrediction {
  int64_t tokens = 0;
  int64_t step_rows = 0;  // of the steps in which it goes through the workers, the last one apart
  double seconds = 0;
  double activated = 0, resident = 0, shipped = 0, on_host = 0;  // experts of all layers, of all passes
  double bytes_shipped = 0;
  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};
struct DecodePrediction {
  double seconds_per_token = 0;
  double host_bytes = 0;      // read from host memory for one token
  double device_bytes = 0;    // read from the workers' own memory
  double resident_share = 0;  // of a token's experts
};

struct PredictionInput {
  const ModelConfig& config;
  const ModelSizes& sizes;
  const ArenaLayout& arena;
  const Placement& placement;
  const std::vector<std::vector<double>>& routing;
  MachineRates rates;          // with one of rates.workers a worker
  std::vector<int64_t> slots;  // experts that each worker can hold
  bool gpu = false;            // the workers have GPUs; otherwise they share the host's cores
  bool ooae = true;
  bool cold = false;  // slots that hold every expert have been emptied, as by bench --cold
};
// One prompt alone, with nothing resident at its start, unless the slots hold every expert: those are filled at load. Copying
// ahead has learnt from prompts before it.
PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens);
// One sequence alone behind `context` tokens, its slots filled with what this model uses most.
DecodePrediction PredictDecode(const PredictionInput& input, int64_t context = 0);
// The same on average over the `tokens` right behind a prompt that found the slots empty: they hold what its prefill had copied,
// and fill up.
DecodePrediction PredictDecodeAfter(const PredictionInput& input, const PrefillPrediction& prefill, int64_t tokens);

}  // namespace ferry
