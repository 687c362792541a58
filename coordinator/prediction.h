#pragma once

// How fast a placement will be, before anything is loaded: the limits of design section 9 applied to this model's own router
// and this machine's rates. Pure functions.

#include <cstdint>
#include <vector>

#include "common/expert_layout.h"
#include "common/gguf.h"
#include "common/model_config.h"
#include "common/status.h"
#include "coordinator/expert_planner.h"
#include "coordinator/placement.h"

namespace ferry {

// The probability of each expert to be among a token's top_k, a vector a layer. A token's router logits are taken as
// independent normal numbers around the router's biases, with the deviation that an RMS-normed input of unit variance gives
// them: the norm of the expert's router row times the norm weights. Sampled with a fixed seed.
absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config);

// Experts of a layer that `tokens` tokens activate, on average: sum of 1 - (1 - p)^tokens.
double ExpectedActivated(const std::vector<double>& probabilities, int64_t tokens);

struct MachineRates {
  double host_read_bytes_per_second = 0;
  double host_flops_per_second = 0;
  double link_bytes_per_second = 0;         // of each worker's link; 0: workers without a GPU
  double device_flops_per_second = 0;       // of a worker's products; a CPU worker: the host's
  double device_read_bytes_per_second = 0;  // of a worker's own memory; a CPU worker: the host's
  double step_overhead_seconds = 0;         // a step of a stage apart from bytes and products
};

struct PrefillPrediction {
  int64_t tokens = 0;
  double seconds = 0;
  double activated = 0, shipped = 0, on_host = 0;  // experts of all layers
  double bytes_shipped = 0;
  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};
struct DecodePrediction {
  double seconds_per_token = 0;
  double host_bytes = 0;    // read from host memory for one token
  double device_bytes = 0;  // read from the workers' own memory
};

struct PredictionInput {
  const ModelConfig& config;
  const ModelSizes& sizes;
  const ArenaLayout& arena;
  const Placement& placement;
  const std::vector<std::vector<double>>& routing;
  MachineRates rates;
  int64_t slots_per_worker = 0;  // experts resident at most; nothing is resident at the start
};
PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens);
DecodePrediction PredictDecode(const PredictionInput& input);

}  // namespace ferry
