#pragma once

// What a layer costs a GPU beside its experts' copies, fitted to the runs in docs/measurements on an H100 and two H200.
// Predictions use it, and whoever cuts prompts into steps.

#include "common/model/model_config.h"

namespace ferry {

inline constexpr double kGpuProductShare = 0.85;    // dense, grouped and attention products of the rate of even groups
inline constexpr double kGpuLayerSeconds = 0.4e-3;  // prefill: small kernels, the histogram's way to the host, the plan

// Of a layer's q, k, v and output matrices, for a token; a product and its addition are two.
inline double AttentionMatrixFlops(const ModelConfig& config) {
  return 4.0 * static_cast<double>(config.n_embd * (config.q_size() + config.kv_size()));
}

}  // namespace ferry
