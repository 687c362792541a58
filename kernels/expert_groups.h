#pragma once

// Which rows go to which expert, and how experts are chosen and computed.

#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/model/model_config.h"

namespace ferry {

// The assignments (token, rank) of a layer grouped by expert: entries [offsets[e], offsets[e+1]) belong to expert e, in order of
// row. Pointers are device memory.
struct ExpertGroups {
  int64_t num_groups = 0;
  int64_t num_entries = 0;
  const int32_t* offsets = nullptr;  // [num_groups + 1]
  const int32_t* rows = nullptr;     // [num_entries] which row of the input
  const int32_t* outs = nullptr;     // [num_entries] which row of the contributions
};

// One expert to compute: its record in device memory, its group in ExpertGroups, and the group's number of rows.
struct ExpertUse {
  const std::byte* record = nullptr;
  int32_t group = 0;
  int64_t num_rows = 0;
};

// The gated linear unit in the numbers that kernels take: common/model/model_config.h, GluConfig.
struct GluParams {
  float alpha = 1;
  float limit = std::numeric_limits<float>::infinity();
  float up_offset = 0;

  GluParams() = default;
  GluParams(const GluConfig& config)  // NOLINT(google-explicit-constructor): the same numbers
      : alpha(static_cast<float>(config.alpha)),
        limit(static_cast<float>(config.limit)),
        up_offset(static_cast<float>(config.up_offset)) {}
};

// A router's weights: F32 in device memory.
struct RouterWeights {
  const float* weight = nullptr;          // [num_experts, n_embd] row-major
  const float* bias = nullptr;            // [num_experts]; null: none
  const float* selection_bias = nullptr;  // [num_experts]; null: none
};

}  // namespace ferry
