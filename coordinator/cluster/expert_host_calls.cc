#include "coordinator/cluster/expert_host_calls.h"

#include <memory>
#include <utility>
#include <vector>

namespace ferry {
namespace {

constexpr double kOfferInterval = 1;  // seconds
constexpr size_t kMaxText = 512;

// The same experts in every layer that has some.
absl::StatusOr<HeldExperts> HeldFrom(const std::string& bits, const ArenaLayout& layout) {
  const size_t num_experts = static_cast<size_t>(layout.num_experts()), want = (num_experts + 7) / 8;
  if (bits.size() != want) return InvalidArgument("held_experts has %d bytes, want %d", bits.size(), want);
  auto experts = std::make_shared<std::vector<bool>>(num_experts);
  for (size_t i = 0; i < num_experts; ++i) (*experts)[i] = (static_cast<unsigned char>(bits[i / 8]) >> (i % 8) & 1) != 0;
  HeldExperts held(layout.num_layers());
  for (int64_t layer = 0; layer < layout.num_layers(); ++layer) {
    if (layout.HasExperts(layer)) held[layer] = experts;
  }
  return held;
}

absl::Status CheckText(const char* field, const std::string& text) {
  if (text.size() <= kMaxText) return absl::OkStatus();
  return InvalidArgument("%s has %d bytes, want at most %d", field, text.size(), kMaxText);
}

}  // namespace

absl::Status ExpertHostCalls::Offer(const internal::v1::OfferExpertsRequest& request,
                                    internal::v1::OfferExpertsResponse* response) {
  RETURN_IF_ERROR(CheckText("machine", request.machine()));
  RETURN_IF_ERROR(CheckText("address", request.address()));
  RETURN_IF_ERROR(CheckText("engine", request.engine()));
  if (!(request.load_progress() >= 0 && request.load_progress() <= 1)) {
    return InvalidArgument("load_progress is %g, want 0 to 1", request.load_progress());
  }
  ExpertHostOffer offer = {
      .incarnation = Incarnation(request.incarnation()),
      .machine = request.machine(),
      .address = request.address(),
      .kernels = KernelsOf(request.engine()),
      .engine = request.engine(),
      .fingerprint = request.model_fingerprint(),
      .ready = request.ready(),
      .load_progress = request.load_progress(),
      .rates = {.read_bytes_per_second = request.read_bytes_per_second(), .flops_per_second = request.flops_per_second()}};
  if (request.ready()) {
    if (request.model_fingerprint() == 0) return InvalidArgument("model_fingerprint is 0, want the model that the host holds");
    ASSIGN_OR_RETURN(offer.holds, HeldFrom(request.held_experts(), store_.layout()));
    offer.held_records = RecordsIn(offer.holds);
    offer.held_bytes = BytesOf(store_.layout(), offer.holds);
  }
  ASSIGN_OR_RETURN(const ExpertHosts::Answer answer, hosts_.Offer(offer));
  response->set_model_fingerprint(fingerprint_);
  if (request.model_fingerprint() == 0) response->set_model(model_header_);
  response->set_max_rows(hosts_.shape().max_rows);
  response->set_max_entries(hosts_.shape().max_entries);
  response->set_place(static_cast<uint32_t>(answer.place));
  response->set_state(answer.state);
  response->set_interval_seconds(kOfferInterval);
  return absl::OkStatus();
}

absl::StatusOr<ExpertRecordStream> ExpertHostCalls::Records(const internal::v1::StreamExpertRecordsRequest& request) const {
  if (request.model_fingerprint() != fingerprint_) {
    return FailedPrecondition("the model's fingerprint is %016x, not %016x", fingerprint_, request.model_fingerprint());
  }
  const ArenaLayout& layout = store_.layout();
  if (static_cast<int64_t>(request.layer()) >= layout.num_layers() || !layout.HasExperts(request.layer())) {
    return InvalidArgument("layer is %d, want one of %d that has experts", request.layer(), layout.num_layers());
  }
  ExpertRequest wanted = {.layer = static_cast<int32_t>(request.layer())};
  for (const uint32_t expert : request.experts()) {
    const int64_t last = wanted.uses.empty() ? -1 : wanted.uses.back().expert;
    if (static_cast<int64_t>(expert) <= last || static_cast<int64_t>(expert) >= layout.num_experts()) {
      return InvalidArgument("experts has %d after %d, want them to increase below %d", expert, last, layout.num_experts());
    }
    wanted.uses.push_back({.expert = static_cast<int32_t>(expert), .tokens = 1});
  }
  return ExpertRecordStream(&store_, std::move(wanted));
}

}  // namespace ferry
