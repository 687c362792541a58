#pragma once

// A model file and its serving flags in the form that predictions need, for `ferry plan` before loading and for `ferry bench`
// beside its measurements.

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/model_options.h"
#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "coordinator/planning/placement.h"
#include "coordinator/planning/prediction_input.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

class PredictedModel {
 public:
  // `gpu_bytes`: the result of ModelOptions::GpuBytes. Errors: the file's, and those of PlanPlacement.
  static absl::StatusOr<std::unique_ptr<PredictedModel>> Open(const ModelOptions& options, int num_workers, int64_t gpu_bytes);

  // Divides the model anew, among other workers. Errors: those of PlanPlacement; the placement stays as it was.
  absl::Status Place(const ModelOptions& options, int num_workers, int64_t gpu_bytes);

  const ModelConfig& config() const { return config_; }
  const ModelSizes& sizes() const { return sizes_; }
  const ArenaLayout& arena() const { return arena_; }
  const Placement& placement() const { return placement_; }

  // The result borrows this object. Replaces GPU rates that are zero with kAssumedGpu.
  PredictionInput Input(MachineRates rates, std::vector<int64_t> slots, bool gpu) const;

 private:
  PredictedModel() = default;
  bool ooae_ = true, help_ = false;
  ModelConfig config_;
  ModelSizes sizes_;
  ArenaLayout arena_;
  Placement placement_;
  std::vector<std::vector<double>> routing_;
};

// Rates of an H100, for a GPU that was not measured.
inline constexpr ExpertRates kAssumedGpu = {.read_bytes_per_second = 2e12, .flops_per_second = 400e12};

// A machine's rates and their source.
struct FoundRates {
  MachineRates rates;
  std::vector<int64_t> slots;  // of each worker
  std::string source;          // for people: "measured at its start on 2026-11-21 10:03", "measured now, link and host apart"
};
nlohmann::json RatesJson(const MachineRates& rates);
// The rates that a running server plans with.
FoundRates RatesOf(const v1::GetServerInfoResponse& info);
// "2026-11-21 10:03"
std::string LocalMinute(absl::Time time);

}  // namespace ferry
