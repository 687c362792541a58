#pragma once

// How fast this host computes experts, measured with the kernels that will compute them, on records of the model's own layout:
// what the planner divides by.

#include <cstddef>
#include <span>
#include <vector>

#include "common/expert_layout.h"
#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

struct HostExpertRates {
  double read_bytes_per_second = 0;  // of expert weights, one row each: decode
  double flops_per_second = 0;       // with many rows an expert: prefill
};

// `records`: expert records to read, together larger than the last cache if read_bytes_per_second is to mean memory; at most
// a fraction of a second is spent. InvalidArgument: no records. `ops` is a host backend.
absl::StatusOr<HostExpertRates> MeasureHostExperts(Ops& ops, const ExpertLayout& layout, std::span<const std::byte* const> records);

// The same before a model is loaded, on made-up records.
absl::StatusOr<HostExpertRates> MeasureHostExpertsOn(Ops& ops, const ExpertLayout& layout);

}  // namespace ferry
