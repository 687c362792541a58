#pragma once

// Computes experts with the engine of this host and those of the expert hosts at the same time: the planner divides each request
// among them (expert_planner.h). Contributions are the same bits whatever engine computes them, and each has its own row, so the
// division changes no result.
//
// This host has every record. When a host fails in a request, its share is computed here, and it is left out of the next ones.

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "coordinator/experts/expert_computer.h"
#include "coordinator/experts/expert_engine.h"
#include "coordinator/experts/expert_hosts.h"

namespace ferry {

enum class DivisionMode {
  kAuto,  // as the planner predicts to be fastest
  kEven,  // for tests and measurements: in turns among all engines that hold the expert
  kOff,   // this host computes everything
};
// InvalidArgument: none of auto, even, off.
absl::StatusOr<DivisionMode> ParseDivisionMode(const std::string& text);

class DividedEngine final : public ExpertComputer {
 public:
  // Borrows all; they outlive it.
  DividedEngine(const ExpertStore* store, ExpertEngine* engine, const ExpertHosts* hosts, DivisionMode mode)
      : store_(*store), engine_(*engine), hosts_(*hosts), mode_(mode) {}

  // The rates of this host's engine, for later requests; its Slowdown corrects them.
  void SetRates(const PlannerRates& host);
  absl::Status Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions) override;
  std::vector<EnginePlace> OtherPlaces(int64_t layer, int64_t num_rows) const override;
  void BeginStep(int64_t num_rows) override;
  double Slowdown(int64_t num_rows) const override { return engine_.Slowdown(num_rows); }

 private:
  struct Share;
  absl::Status ComputeDivided(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions);
  std::vector<int32_t> Divide(const ExpertRequest& request, const std::vector<EnginePlace>& others) const;
  static void Start(Share& share, std::span<const float> rows);
  void Finish(Share& share, absl::Duration patience, std::span<float> contributions) const;

  const ExpertStore& store_;
  ExpertEngine& engine_;
  const ExpertHosts& hosts_;
  const DivisionMode mode_;
  std::mutex one_at_a_time_;  // of divided computations: each uses all engines
  mutable std::mutex mutex_;
  PlannerRates rates_;  // guarded by mutex_
};

}  // namespace ferry
