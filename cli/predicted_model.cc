#include "cli/predicted_model.h"

#include <algorithm>
#include <limits>

#include "common/model/model_tensors.h"
#include "coordinator/planning/routing_probabilities.h"

namespace ferry {
namespace {

void CopyCurve(const google::protobuf::RepeatedField<double>& from, ExpertRates& to) {
  if (from.size() == static_cast<int>(to.flops_at_rows.size())) std::copy(from.begin(), from.end(), to.flops_at_rows.begin());
}

}  // namespace

absl::StatusOr<std::unique_ptr<PredictedModel>> PredictedModel::Open(const ModelOptions& options, int num_workers,
                                                                     int64_t gpu_bytes) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.model));
  std::unique_ptr<PredictedModel> model(new PredictedModel);
  model->ooae_ = options.ooae;
  model->help_ = options.share_links != "off";
  ASSIGN_OR_RETURN(model->config_, ModelConfig::FromGguf(file));
  ASSIGN_OR_RETURN(model->arena_, ArenaLayoutOf(file, model->config_));
  ASSIGN_OR_RETURN(model->sizes_, ModelSizesOf(file, model->config_));
  RETURN_IF_ERROR(model->Place(options, num_workers, gpu_bytes));
  ASSIGN_OR_RETURN(model->routing_, RoutingProbabilities(file, model->config_));
  return model;
}

absl::Status PredictedModel::Place(const ModelOptions& options, int num_workers, int64_t gpu_bytes) {
  ASSIGN_OR_RETURN(const PlacementOptions placement, options.Placement(num_workers, gpu_bytes));
  ASSIGN_OR_RETURN(placement_, PlanPlacement(config_, sizes_, placement));
  return absl::OkStatus();
}

PredictionInput PredictedModel::Input(MachineRates rates, std::vector<int64_t> slots, bool gpu) const {
  rates.workers.resize(placement_.workers.size());
  slots.resize(placement_.workers.size());
  for (size_t w = 0; w < slots.size(); ++w) {
    const LayerRange& layers = placement_.workers[w].layers;
    slots[w] = std::min(slots[w], arena_.num_records(layers.first, layers.end));
  }
  for (WorkerRates& worker : rates.workers) {
    if (worker.experts.flops_per_second == 0) worker.experts.flops_per_second = kAssumedGpu.flops_per_second;
    if (worker.experts.read_bytes_per_second == 0) worker.experts.read_bytes_per_second = kAssumedGpu.read_bytes_per_second;
  }
  return {.config = config_,
          .sizes = sizes_,
          .arena = arena_,
          .placement = placement_,
          .routing = routing_,
          .rates = std::move(rates),
          .slots = std::move(slots),
          .gpu = gpu,
          .ooae = ooae_,
          .help = help_};
}

std::string LocalMinute(absl::Time time) { return absl::FormatTime("%Y-%m-%d %H:%M", time, absl::LocalTimeZone()); }

nlohmann::json RatesJson(const MachineRates& rates) {
  const auto experts = [](const ExpertRates& experts) {
    return nlohmann::json{{"read_bytes_per_second", experts.read_bytes_per_second},
                          {"flops_per_second", experts.flops_per_second},
                          {"flops_at_rows", experts.flops_at_rows}};
  };
  nlohmann::json workers = nlohmann::json::array();
  for (const WorkerRates& worker : rates.workers) {
    workers.push_back({{"link_alone", worker.link.alone},
                       {"link_together", worker.link.together},
                       {"link_beside_host", worker.link.beside_host},
                       {"experts", experts(worker.experts)},
                       {"operation_seconds", worker.operation_seconds},
                       {"message_seconds", worker.message_seconds}});
  }
  return {{"host", experts(rates.host)}, {"host_beside_links", experts(rates.host_beside_links)}, {"workers", workers}};
}

FoundRates RatesOf(const v1::GetServerInfoResponse& info) {
  const v1::HostExpertRates& host = info.host_experts();
  FoundRates found;
  found.rates.host = {.read_bytes_per_second = host.read_bytes_per_second(), .flops_per_second = host.flops_per_second()};
  found.rates.host_beside_links = {.read_bytes_per_second = host.read_bytes_per_second_beside_links(),
                                   .flops_per_second = host.flops_per_second_beside_links()};
  CopyCurve(host.flops_per_second_at_rows(), found.rates.host);
  CopyCurve(host.flops_per_second_at_rows_beside_links(), found.rates.host_beside_links);
  for (const v1::WorkerInfo& worker : info.workers()) {
    found.rates.workers.push_back(RatesOf(worker));
    // To a prediction, experts that are read where they lie are as good as experts in slots.
    found.slots.push_back(worker.experts_in_place() ? std::numeric_limits<int64_t>::max() : worker.expert_slots());
  }
  if (host.measured_unix_seconds() == 0) {
    found.source = "given by hand, or guessed";
  } else {
    found.rates.measured = absl::FromUnixSeconds(static_cast<int64_t>(host.measured_unix_seconds()));
    found.source = (host.kept() ? "kept from a start on " : "measured at its start on ") + LocalMinute(found.rates.measured);
  }
  return found;
}

}  // namespace ferry
