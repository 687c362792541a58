#pragma once

// How many rows a prompt's steps should have when several workers compute one after the other. Short steps keep all workers busy;
// long steps copy an expert once for more rows. Pure functions.

#include <cstdint>
#include <span>

#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "coordinator/planning/placement.h"

namespace ferry {

struct WorkerCapacity {
  LayerRange layers;
  int64_t slots = 0;                 // experts that it can hold
  double link_bytes_per_second = 0;  // 0: unknown
  double flops_per_second = 0;       // of expert products on its device; 0: unknown
};
// The part of a step's cost that does not depend on its rows, as the number of rows that the worker computes in the same time;
// the largest of all workers. Infinity: cutting gains nothing, since the host's engine, which all workers share, computes a
// worker's experts, or since a worker's rates are unknown.
double StepCostRows(const ModelConfig& config, const ArenaLayout& arena, std::span<const WorkerCapacity> workers);

// Rows of each step when all unfinished prompts together have `prompt_rows`, through `num_workers`. With k equal steps, the last
// worker ends after k + num_workers - 1 turns of (cost + prompt_rows / k) rows each; that is least at k = sqrt(prompt_rows *
// (num_workers - 1) / cost).
int64_t StepRows(int64_t prompt_rows, int64_t num_workers, double step_cost_rows);

}  // namespace ferry
