#pragma once

#include <cstdint>

#include "common/deadline.h"
#include "ferry/v1/generate.pb.h"
#include "worker/step_trace.h"

namespace ferry {

// The step that a stage computes, as its experts need it. Borrows counters and trace, which outlive the step.
struct StepContext {
  uint64_t step = 0;
  Deadline deadline;
  v1::ExpertCounters* counters = nullptr;
  StepTrace* trace = nullptr;
};

}  // namespace ferry
