#pragma once

// The cost of a layer on a GPU without its experts' copies, fitted to the runs in docs/measurements on an H100 and two H200.
// prediction.h and step_rows.h use it.

#include "common/model/model_config.h"

namespace ferry {

inline constexpr double kGpuProductShare =
    0.85;  // rate of dense, grouped and attention products, as a share of the rate of even groups
inline constexpr double kGpuLayerSeconds = 0.4e-3;  // prefill: small kernels, the download of the histogram, the plan

// FLOPs of a layer's q, k, v and output matrices for one token; a multiplication and its addition are two.
inline double AttentionMatrixFlops(const ModelConfig& config) {
  return 4.0 * static_cast<double>(config.n_embd * (config.q_size() + config.kv_size()));
}

}  // namespace ferry
