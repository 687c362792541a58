#pragma once

// How many rows a prompt's steps should have when several workers compute one after the other: short steps keep all of them at
// work, long ones copy an expert once for more rows. Pure functions.

#include <cstdint>
#include <span>

#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "coordinator/planning/placement.h"

namespace ferry {

struct WorkerCapacity {
  LayerRange layers;
  int64_t slots = 0;                 // experts that it can hold
  double link_bytes_per_second = 0;  // 0: not known
  double flops_per_second = 0;       // of its own expert products; 0: not known
};
// What a step costs the slowest of `workers` whatever its rows, in rows that it would compute in the same time; infinity: nothing
// is won by cutting, since a worker's experts are computed by the host's engine, which all share.
double StepCostRows(const ModelConfig& config, const ArenaLayout& arena, std::span<const WorkerCapacity> workers);

// Rows of each step of `prompt_rows` rows through `num_workers`. With k equal steps the last worker ends after k + num_workers -
// 1 turns of (cost + prompt_rows / k) rows each; that is least at k = sqrt(prompt_rows * (num_workers - 1) / cost).
int64_t StepRows(int64_t prompt_rows, int64_t num_workers, double step_cost_rows);

}  // namespace ferry
