#pragma once

// Which hosts of a described cluster should hold experts for the first of them, and what each would compute. A pure function over
// the predictions, and so over the coordinator's own planner.

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/planning/prediction_input.h"

namespace ferry {

// A host that could run ferry-expert-host.
struct CandidateHost {
  int64_t memory_bytes = 0;  // that the process may take
  ExpertRates rates;         // of its engine alone
  double exchange_seconds = 0;
  double bytes_per_second = 0;  // of rows on their way there or back
};

// What becomes of it.
struct HostUse {
  bool used = false;
  std::string why;  // for people
  int64_t records = 0, bytes = 0;
};

// Of a host's memory, what ferry-expert-host leaves to everything but records.
int64_t ReserveOf(int64_t memory_bytes);
// A host takes part when decode is predicted to be faster by this with it than without it. Predictions are no better than that.
inline constexpr double kWorthAHost = 1.02;

// Adds to input->expert_hosts those of `candidates` that are worth it, in order. `max_entries`: of one exchange.
std::vector<HostUse> ChooseExpertHosts(const std::vector<CandidateHost>& candidates, int64_t max_entries, PredictionInput* input);

}  // namespace ferry
