#pragma once

// Predicts how fast a placement will compute a prompt, before anything is loaded. It follows the runtime layer by layer, with the
// model's own router, the coordinator's own planner and the machines' rates. A pure function with a fixed seed.

#include <cstdint>
#include <vector>

#include "coordinator/planning/prediction_input.h"

namespace ferry {

struct PrefillPrediction {
  int64_t tokens = 0;
  int64_t step_rows = 0;  // rows of each step but the last
  double seconds = 0;
  double activated = 0, resident = 0, shipped = 0, on_host = 0;  // experts, summed over layers and steps
  double helped = 0;                                             // of those shipped: by another worker than the layer's
  double bytes_shipped = 0;
  std::vector<double> on_expert_hosts;  // experts, of those on the host: by each of the input's expert hosts
  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

// One prompt alone. At its start the slots are empty, except slots that hold every expert, which are filled at load. Copying
// ahead has learnt from earlier prompts.
PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens);

}  // namespace ferry
