#pragma once

// Checks of the coordinator's answers to expert requests.

#include <cstdint>
#include <span>
#include <vector>

#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// InvalidArgument: a number that is no ExpertPlace.
absl::StatusOr<std::vector<ExpertPlace>> PlacesFromProto(const internal::v1::ExpertPlan& plan);

// Checks a plan against the request, over any link. Internal: not one place for each use, a number that is no place, a place
// kResident for an expert that is not resident, or a worker that is none of `helpers` (bit i: worker i).
absl::Status CheckPlaces(std::span<const ExpertPlace> places, std::span<const ActivatedExpert> uses, uint32_t helpers,
                         int64_t layer);

// The contributions [num_entries, n_embd] in `bytes`, borrowed. DataLoss: another number of bytes.
absl::StatusOr<std::span<const float>> ContributionsFrom(const std::string& bytes, int64_t num_entries, int64_t n_embd);

}  // namespace ferry
