#pragma once

// How likely a model's router is to choose each expert, from its weights alone.

#include <cstdint>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry {

// The probability that an expert is among a token's top_k: one vector of experts for each layer. The model of routing: a token's
// router logits are normal around the router's biases. Their deviation is that of an RMS-normed input of unit variance, which is
// the norm of the expert's router row times the norm weights. A part of the variance, which grows with depth, is common to all
// tokens. The probabilities are sampled with a fixed seed.
absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config);

// The mean number of experts of a layer that `tokens` tokens activate: the sum of 1 - (1 - p)^tokens.
double ExpectedActivated(const std::vector<double>& probabilities, int64_t tokens);

}  // namespace ferry
