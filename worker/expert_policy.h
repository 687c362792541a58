#pragma once

// How a worker places the experts of a layer: on its own device, or on the coordinator's host.

#include <cstdint>
#include <vector>

#include "common/expert_plan.h"

namespace ferry {

struct ExpertPolicy {
  bool ooae = true;                     // false: every expert of a layer is shipped, used or not
  bool in_place = false;                // this device reads experts where they lie in the host's memory; there are no slots
  ExpertRule force = ExpertRule::kAny;  // for tests and measurements: overrides rules and planner in every layer
  std::vector<ExpertRule> rules;        // one for each layer of the stage; empty: kAny

  // `index` counts the layers of the stage.
  ExpertRule RuleOf(int64_t index) const { return index < static_cast<int64_t>(rules.size()) ? rules[index] : ExpertRule::kAny; }
};

// How the activated experts of one layer are placed in one step.
enum class ExpertMode {
  kHost,              // all on the host
  kInPlace,           // all here, read from the host's memory
  kResidentElseHost,  // experts in slots here, the others on the host
  kPlanned,           // as the coordinator's planner says
  kShipActivated,     // all here
  kShipAll,           // all here, and the layer's other experts are copied too
};

inline ExpertMode ModeFor(const ExpertPolicy& policy, ExpertRule rule, bool has_slots, int64_t rows) {
  if (policy.force == ExpertRule::kHost || rule == ExpertRule::kHost) return ExpertMode::kHost;
  if (policy.in_place) return ExpertMode::kInPlace;
  if (!has_slots) return ExpertMode::kHost;
  if (!policy.ooae) return ExpertMode::kShipAll;
  if (policy.force == ExpertRule::kDevice || rule == ExpertRule::kDevice) return ExpertMode::kShipActivated;
  return rows <= kMaxRowsWithoutPlan ? ExpertMode::kResidentElseHost : ExpertMode::kPlanned;
}

}  // namespace ferry
