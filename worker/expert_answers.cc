#include "worker/expert_answers.h"

#include <bit>

namespace ferry {

static_assert(std::endian::native == std::endian::little, "contributions cross the wire little-endian");

absl::StatusOr<std::vector<ExpertPlace>> PlacesFromProto(const internal::v1::ExpertPlan& plan) {
  std::vector<ExpertPlace> places;
  for (const int place : plan.places()) {
    switch (place) {
      case internal::v1::ExpertPlan::RESIDENT:
        places.push_back(ExpertPlace::kResident);
        break;
      case internal::v1::ExpertPlan::SHIP:
        places.push_back(ExpertPlace::kShip);
        break;
      case internal::v1::ExpertPlan::HOST:
        places.push_back(ExpertPlace::kHost);
        break;
      default:
        return InvalidArgument("ExpertPlan.places holds %d, which is no place", place);
    }
  }
  return places;
}

absl::Status CheckPlaces(std::span<const ExpertPlace> places, std::span<const ActivatedExpert> uses, uint32_t helpers,
                         int64_t layer) {
  if (places.size() != uses.size()) return Internal("the plan places %d experts, want %d", places.size(), uses.size());
  for (size_t i = 0; i < uses.size(); ++i) {
    if (places[i] > ExpertPlace::kHost && !IsHelper(places[i])) {
      return Internal("the plan gives expert %d of layer %d to %d, which is no place", uses[i].expert, layer,
                      static_cast<int>(places[i]));
    }
    if (places[i] == ExpertPlace::kResident && uses[i].resident == 0) {
      return Internal("the plan takes expert %d of layer %d for resident", uses[i].expert, layer);
    }
    if (IsHelper(places[i]) && (helpers & HelperBit(HelperOf(places[i]))) == 0) {
      return Internal("the plan gives expert %d of layer %d to worker %d, which does not help", uses[i].expert, layer,
                      HelperOf(places[i]));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<const float>> ContributionsFrom(const std::string& bytes, int64_t num_entries, int64_t n_embd) {
  const size_t want_bytes = static_cast<size_t>(num_entries * n_embd) * sizeof(float);
  if (bytes.size() != want_bytes) {
    return DataLoss("ComputeExperts: contributions has %d bytes, want %d", bytes.size(), want_bytes);
  }
  return std::span(reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float));
}

}  // namespace ferry
