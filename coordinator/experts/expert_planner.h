#pragma once

// Divides the activated experts of one layer between the worker's device and the host. A pure function: no clock, no state.
//
// An expert whose copy is running costs the link as much as one that nobody has asked for, so the planner divides both alike. So
// an expert with few tokens may go to the host while its copy is running. The worker learns from that to copy less before it
// knows the routing (worker/expert_forecast.h).
//
// Shipping an expert costs bytes / link rate whatever its tokens; computing it on the host costs reading it (bytes / host read
// rate, at one row) and multiplying the other rows ((tokens - 1) * flops / host flop rate). Both run at once, so the best plan
// makes them end at the same time. It goes through the experts in order of tokens per byte, ships the heavy ones and
// leaves the light ones to the host.

#include <cstdint>
#include <span>
#include <vector>

#include "common/shm/expert_mailbox.h"

namespace ferry {

struct PlannerRates {
  double link_bytes_per_second = 0;       // to this worker's device, while the host computes
  double host_read_bytes_per_second = 0;  // while the link runs
  double host_flops_per_second = 0;       // of expert products with many rows
  bool operator==(const PlannerRates&) const = default;
};

struct PlannerInput {
  std::span<const ActivatedExpert> uses;
  double bytes_per_expert = 0;
  double flops_per_token = 0;
  int64_t num_slots = 0;  // experts the worker can hold at once; 0: nothing is shipped
  PlannerRates rates;
  bool host_allowed = true;  // -ot: this layer's experts may be computed on the host
  bool ship_allowed = true;  // -ot: they may be shipped
  bool ship_all = false;     // --no-ooae: every expert that is not resident is shipped
};

struct ExpertPlan {
  std::vector<ExpertPlace> places;  // one a use
  double link_seconds = 0;          // predicted time of the copies; 0 when the rate is unknown
  double host_seconds = 0;          // predicted time of the host's share; likewise
};

// The host computes what the input's rules leave no place for: an expert that may be neither shipped nor computed on the host.
ExpertPlan PlanExperts(const PlannerInput& input);

}  // namespace ferry
