#pragma once

// Predicts how fast a placement will decode, before anything is loaded: a token's way through the layers, with the machines'
// rates. Pure functions with a fixed seed.

#include <cstdint>
#include <vector>

#include "coordinator/planning/prediction_input.h"
#include "coordinator/planning/prefill_prediction.h"

namespace ferry {

struct DecodePrediction {
  double seconds_per_token = 0;
  double host_bytes = 0;                  // read from host memory for one token
  double device_bytes = 0;                // read from the workers' own memory for one token
  double resident_share = 0;              // share of a token's experts
  double host_expert_bytes = 0;           // of host_bytes: experts
  std::vector<double> expert_host_bytes;  // of these, by each of the input's expert hosts
};

// One sequence alone behind `context` tokens; the slots hold the experts that the model uses most.
DecodePrediction PredictDecode(const PredictionInput& input, int64_t context = 0);
// The mean over the first `tokens` behind a prompt that began with empty slots. The slots hold the experts that its prefill
// copied, and decode fills the others.
DecodePrediction PredictDecodeAfter(const PredictionInput& input, const PrefillPrediction& prefill, int64_t tokens);

}  // namespace ferry
