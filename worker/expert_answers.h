#pragma once

// The coordinator's answers to the expert exchanges, checked before a place or a number of them is used.

#include <cstdint>
#include <span>
#include <vector>

#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// InvalidArgument: a place that is none.
absl::StatusOr<std::vector<ExpertPlace>> PlacesFromProto(const internal::v1::ExpertPlan& plan);

// Whether a plan, over whatever link it came, fits what it was asked for. Internal: not one place a use, or an expert taken for
// resident that is not.
absl::Status CheckPlaces(std::span<const ExpertPlace> places, std::span<const ActivatedExpert> uses, int64_t layer);

// The numbers of a host computation, borrowed. DataLoss: not num_entries rows of n_embd.
absl::StatusOr<std::span<const float>> ContributionsFrom(const std::string& bytes, int64_t num_entries, int64_t n_embd);

}  // namespace ferry
