#include "cli/predicted_model.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "common/byte_size.h"
#include "common/model/model_tensors.h"
#include "coordinator/planning/rates_file.h"
#include "kernels/ops.h"

namespace ferry {
namespace {

constexpr absl::Duration kCopyTime = absl::Milliseconds(100);
// Of a GPU's free memory, what automatic slots leave beside weights and KV cache: a worker's buffers, and what it keeps free.
constexpr double kShareLeft = 0.08;

std::string At(absl::Time time) { return absl::FormatTime("%Y-%m-%d %H:%M", time, absl::LocalTimeZone()); }

// Experts that a worker of these options could hold.
absl::StatusOr<int64_t> SlotsOf(const ModelOptions& options, const PredictedModel& model, const WorkerPlacement& worker, bool gpu,
                                Ops& ops) {
  if (options.vram_experts.empty() && !gpu) return 0;
  int64_t bytes = 0;
  if (options.vram_experts.empty() || options.vram_experts == "auto") {
    if (!gpu) return 0;
    ASSIGN_OR_RETURN(const DeviceMemoryInfo memory, ops.MemoryInfo());
    bytes =
        static_cast<int64_t>((1 - kShareLeft) * static_cast<double>(memory.free_bytes)) - worker.dense_bytes - worker.kv_bytes;
  } else {
    ASSIGN_OR_RETURN(bytes, ParseByteSize(options.vram_experts));
  }
  const int64_t all = model.arena().num_records(worker.layers.first, worker.layers.end);
  return std::clamp<int64_t>(bytes / model.arena().max_record_bytes(), 0, all);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PredictedModel>> PredictedModel::Open(const ModelOptions& options, int num_workers,
                                                                     int64_t gpu_bytes) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.model));
  std::unique_ptr<PredictedModel> model(new PredictedModel);
  model->ooae_ = options.ooae;
  ASSIGN_OR_RETURN(model->config_, ModelConfig::FromGguf(file));
  ASSIGN_OR_RETURN(model->arena_, ArenaLayoutOf(file, model->config_));
  ASSIGN_OR_RETURN(model->sizes_, ModelSizesOf(file, model->config_));
  ASSIGN_OR_RETURN(const PlacementOptions placement, options.Placement(num_workers, gpu_bytes));
  ASSIGN_OR_RETURN(model->placement_, PlanPlacement(model->config_, model->sizes_, placement));
  ASSIGN_OR_RETURN(model->routing_, RoutingProbabilities(file, model->config_));
  return model;
}

PredictionInput PredictedModel::Input(MachineRates rates, std::vector<int64_t> slots, bool gpu) const {
  rates.workers.resize(placement_.workers.size());
  slots.resize(placement_.workers.size());
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
          .ooae = ooae_};
}

nlohmann::json RatesJson(const MachineRates& rates) {
  const auto experts = [](const ExpertRates& experts) {
    return nlohmann::json{{"read_bytes_per_second", experts.read_bytes_per_second},
                          {"flops_per_second", experts.flops_per_second}};
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
  for (const v1::WorkerInfo& worker : info.workers()) {
    found.rates.workers.push_back(RatesOf(worker));
    found.slots.push_back(worker.expert_slots());
  }
  if (host.measured_unix_seconds() == 0) {
    found.source = "given by hand, or guessed";
  } else {
    found.rates.measured = absl::FromUnixSeconds(static_cast<int64_t>(host.measured_unix_seconds()));
    found.source = (host.kept() ? "kept from a start on " : "measured at its start on ") + At(found.rates.measured);
  }
  return found;
}

absl::StatusOr<FoundRates> RatesOfThisMachine(const ModelOptions& options, const PredictedModel& model,
                                              const std::vector<std::string>& devices) {
  const BackendOptions host_options = {.kind = "cpu", .num_threads = options.threads, .isa = options.isa};
  ASSIGN_OR_RETURN(const std::unique_ptr<Ops> host, CreateOps(host_options));
  FoundRates found;
  std::vector<std::unique_ptr<Ops>> gpus;
  std::vector<RatedWorker> rated;
  for (size_t w = 0; w < devices.size(); ++w) {
    const bool gpu = devices[w].starts_with("cuda:");
    Ops* ops = host.get();
    if (gpu) {
      BackendOptions gpu_options = {.kind = "cuda"};
      if (!absl::SimpleAtoi(devices[w].substr(5), &gpu_options.device)) return Internal("'%s' names no GPU", devices[w]);
      ASSIGN_OR_RETURN(gpus.emplace_back(), CreateOps(gpu_options));
      ops = gpus.back().get();
    }
    ASSIGN_OR_RETURN(const int64_t slots, SlotsOf(options, model, model.placement().workers[w], gpu, *ops));
    found.slots.push_back(slots);
    rated.push_back(
        {.device = ops->name(), .transport = options.expert_transport == "grpc" ? "grpc" : "shm", .has_slots = slots > 0});
  }
  const std::string key = RatesKey(host->name(), model.arena(), rated);
  if (!options.probe) {
    const absl::StatusOr<MachineRates> kept = ReadRates(RatesDirectory(), key, absl::Now());
    if (kept.ok() && kept->workers.size() == devices.size()) {
      found.rates = *kept;
      found.source = "kept from a start on " + At(kept->measured);
      return found;
    }
  }
  const ExpertLayout& layout = model.arena().layer(model.arena().FirstWithExperts());
  ASSIGN_OR_RETURN(found.rates.host, MeasureExpertsOn(*host, layout, {}));
  found.rates.host_beside_links = found.rates.host;
  for (size_t w = 0; w < devices.size(); ++w) {
    Ops& ops = gpus.empty() ? *host : *gpus[w];
    WorkerRates rates;
    if (found.slots[w] > 0) {
      ASSIGN_OR_RETURN(rates.link.alone, MeasureCopies(ops, layout.bytes, kCopyTime));
    }
    if (!gpus.empty()) {
      ASSIGN_OR_RETURN(rates.experts, MeasureExpertsOn(ops, layout, {.many_rows = 128, .many_row_experts = 32}));
      ASSIGN_OR_RETURN(rates.operation_seconds, MeasureOperation(ops, layout.down.rows));
    }
    found.rates.workers.push_back(rates);
  }
  found.source = "measured now, one after the other: a start of the server measures all at once and keeps that";
  return found;
}

}  // namespace ferry
