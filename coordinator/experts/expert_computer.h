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
  // The engines that take part in a layer beside the coordinator's own. Thread-safe.
  virtual std::vector<EnginePlace> OtherPlaces(int64_t layer) const { return {}; }
};

}  // namespace ferry
