#pragma once

// What computes experts for the workers: one engine, or several divided over hosts.

#include <span>
#include <vector>

#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "coordinator/experts/expert_planner.h"

namespace ferry {

class ExpertComputer {
 public:
  virtual ~ExpertComputer() = default;

  // contributions[i] = expert of entry i applied to rows[entry_rows[i]]. First checks all of `request` against the model and the
  // spans: InvalidArgument names the field. Thread-safe.
  //   rows           [request.num_rows, n_embd]            F32
  //   contributions  [request.entry_rows.size(), n_embd]   F32
  virtual absl::Status Compute(const ExpertRequest& request, std::span<float> rows, std::span<float> contributions) = 0;
  // The engines that take part in a layer of a step of so many rows beside the coordinator's own. Thread-safe.
  virtual std::vector<EnginePlace> OtherPlaces(int64_t layer, int64_t num_rows) const { return {}; }
  // A step of so many rows begins: from here on what steps like it took before corrects rates. Thread-safe.
  virtual void BeginStep(int64_t num_rows) {}
  // How many times as long as by its measured rates the coordinator's own engine takes in steps of so many rows. Thread-safe.
  virtual double Slowdown(int64_t num_rows) const { return 1; }
};

}  // namespace ferry
