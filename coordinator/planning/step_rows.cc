#include "coordinator/planning/step_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "coordinator/planning/layer_costs.h"

namespace ferry {
namespace {

// Fitted to two H200 (docs/measurements/several_gpus.md): six layers of gpt-oss-120b take 10.3 ms for 2,048 rows and 18.2 ms for
// 4,096, all experts being there.
constexpr double kHandOverSeconds = 1.5e-3;
// Of a layer's experts by a few thousand tokens (60 to 75 % of 128: docs/measurements/prefill_gpu.md), and of the slots those
// that hold what the next step needs.
constexpr double kActivatedShare = 0.7;
constexpr double kKeptShare = 0.9;
constexpr double kHostHelps = 2;  // the planner divides absent experts between the link and the host

double StepCostRows(const ModelConfig& config, const ArenaLayout& arena, const WorkerCapacity& worker) {
  if (worker.slots == 0 || worker.link_bytes_per_second <= 0 || worker.flops_per_second <= 0) {
    return std::numeric_limits<double>::infinity();
  }
  const int64_t num_records = arena.num_records(worker.layers.first, worker.layers.end);
  const bool holds_all = worker.slots >= num_records;
  const double kept_share = holds_all ? 1 : kKeptShare * static_cast<double>(worker.slots) / static_cast<double>(num_records);
  const double kept = kept_share * static_cast<double>(arena.num_experts());
  const double copied = holds_all ? 0 : std::max(0.0, kActivatedShare * static_cast<double>(arena.num_experts()) - kept);
  double step_seconds = kHandOverSeconds, row_flops = 0;
  for (int64_t layer = worker.layers.first; layer < worker.layers.end; ++layer) {
    const ExpertLayout& expert = arena.layer(layer);
    step_seconds += kGpuLayerSeconds + copied * static_cast<double>(expert.bytes) / (kHostHelps * worker.link_bytes_per_second);
    row_flops += DenseMatrixFlops(config, layer);
    if (arena.HasExperts(layer)) row_flops += static_cast<double>(config.router.top_k * expert.flops_per_token());
  }
  return step_seconds * kGpuProductShare * worker.flops_per_second / row_flops;
}

}  // namespace

double StepCostRows(const ModelConfig& config, const ArenaLayout& arena, std::span<const WorkerCapacity> workers) {
  double rows = 0;
  for (const WorkerCapacity& worker : workers) rows = std::max(rows, StepCostRows(config, arena, worker));
  return rows;
}

int64_t StepRows(int64_t prompt_rows, int64_t num_workers, double step_cost_rows) {
  if (num_workers < 2 || prompt_rows < 2 || !std::isfinite(step_cost_rows)) return prompt_rows;
  const double best = std::sqrt(static_cast<double>(prompt_rows * (num_workers - 1)) / std::max(step_cost_rows, 1.0));
  const auto num_steps = std::clamp<int64_t>(std::llround(best), 1, prompt_rows);
  return (prompt_rows + num_steps - 1) / num_steps;
}

}  // namespace ferry
