#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "ferry/v1/generate.pb.h"
#include "worker/step_trace.h"

namespace ferry {

// The step that a stage computes, as its experts need it. Borrows counters and trace, which outlive the step.
struct StepContext {
  uint64_t step = 0;
  absl::Time deadline;
  v1::ExpertCounters* counters = nullptr;
  StepTrace* trace = nullptr;
};

}  // namespace ferry
