#pragma once

// A model file with the flags it is served by, as predictions need it: for `ferry plan` before anything is loaded, and for `ferry
// bench` beside what it measures.

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/model_options.h"
#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "coordinator/planning/placement.h"
#include "coordinator/planning/prediction.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

class PredictedModel {
 public:
  // `gpu_bytes`: as ModelOptions::GpuBytes gives it. Errors: the file's, and those of PlanPlacement.
  static absl::StatusOr<std::unique_ptr<PredictedModel>> Open(const ModelOptions& options, int num_workers, int64_t gpu_bytes);

  const ModelConfig& config() const { return config_; }
  const ModelSizes& sizes() const { return sizes_; }
  const ArenaLayout& arena() const { return arena_; }
  const Placement& placement() const { return placement_; }

  // Borrows this. Rates of a GPU's products that are zero are assumed, see kAssumedGpu.
  PredictionInput Input(MachineRates rates, std::vector<int64_t> slots, bool gpu) const;

 private:
  PredictedModel() = default;
  bool ooae_ = true;
  ModelConfig config_;
  ModelSizes sizes_;
  ArenaLayout arena_;
  Placement placement_;
  std::vector<std::vector<double>> routing_;
};

// Of an H100, where nobody measured.
inline constexpr ExpertRates kAssumedGpu = {.read_bytes_per_second = 2e12, .flops_per_second = 400e12};

// A machine's rates, and where they come from.
struct FoundRates {
  MachineRates rates;
  std::vector<int64_t> slots;  // of each worker
  std::string source;          // for people: "measured at its start on 2026-11-21 10:03", "measured now, link and host apart"
};
nlohmann::json RatesJson(const MachineRates& rates);
// What a running server plans with.
FoundRates RatesOf(const v1::GetServerInfoResponse& info);
// What an earlier start on this machine kept for workers on `devices`; otherwise host, links and GPUs are measured here, one
// after the other, for about a second.
absl::StatusOr<FoundRates> RatesOfThisMachine(const ModelOptions& options, const PredictedModel& model,
                                              const std::vector<std::string>& devices);

}  // namespace ferry
