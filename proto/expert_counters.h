#pragma once

// Sums of the counters that workers report: over layers, steps, workers and requests.

#include "ferry/v1/generate.pb.h"

namespace ferry {

// total += part, field by field.
void AddCounters(const v1::ExpertCounters& part, v1::ExpertCounters* total);

}  // namespace ferry
