#pragma once

// Whether a measurement of this machine can be trusted: not when other programs were at work meanwhile, nor when measuring twice
// gives two answers. Such rates serve the start that measured them and are not kept for later ones.

#include <string>

#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/expert_rates.h"

namespace ferry {

// Processor time since the machine started, in seconds, of all cores together.
struct ProcessorTime {
  double busy = 0;  // of every program; what a hypervisor gave to other machines is busy too
  double own = 0;   // of this process
  int cores = 0;
};
// From /proc/stat and the process's own account. NotFound: the system does not tell.
absl::StatusOr<ProcessorTime> ReadProcessorTime();
// `stat`: the text of /proc/stat, whose ticks are `tick_seconds` long.
absl::StatusOr<ProcessorTime> ParseProcessorTime(const std::string& stat, double tick_seconds);

// What disturbed a measurement that took `seconds` between the two readings; empty: nothing. Others may use a twentieth of the
// machine, and a third of a core on small ones.
std::string OthersAtWork(const ProcessorTime& before, const ProcessorTime& after, double seconds);
// Of the same thing measured twice; empty: the two agree to a quarter.
std::string Disagreement(const ExpertRates& first, const ExpertRates& second);
// Of a measurement and the steps since; empty: no part has taken less than half or more than twice the time in large steps.
std::string Contradiction(const v1::GetServerInfoResponse& info);

}  // namespace ferry
