#pragma once

// Parameters of operations as most tests want them.

#include <cmath>
#include <cstdint>

#include "kernels/ops.h"

namespace ferry {

// Scores times 1 / sqrt(head_dim).
inline AttentionParams PlainAttention(const KvLayer& cache, int64_t window = 0, const float* sinks = nullptr) {
  return {.scale = 1 / std::sqrt(static_cast<double>(cache.head_dim)), .window = window, .sinks = sinks};
}

// The softmax over the chosen.
inline RouterConfig PlainRouter(int64_t num_experts, int64_t top_k) { return {.num_experts = num_experts, .top_k = top_k}; }

inline GluParams GptOssGlu() { return GluConfig{.alpha = 1.702, .limit = 7, .up_offset = 1}; }

}  // namespace ferry
