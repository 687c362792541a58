#include "cli/planned_machine.h"

#include <algorithm>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "cli/late_word.h"
#include "common/byte_size.h"
#include "common/host_memory.h"
#include "common/number.h"
#include "coordinator/planning/rates_file.h"
#include "kernels/ops.h"

namespace ferry {
namespace {

constexpr absl::Duration kCopyTime = absl::Milliseconds(100);
// Of a GPU's free memory, what automatic slots leave beside weights and KV cache: a worker's buffers, and what it keeps free.
constexpr double kShareLeft = 0.08;

absl::StatusOr<std::unique_ptr<Ops>> OpsOf(const PlannedDevice& device) {
  BackendOptions options = {.kind = "cuda"};
  if (!absl::SimpleAtoi(device.name.substr(5), &options.device)) return Internal("'%s' names no GPU", device.name);
  return CreateOps(options);
}

int64_t Usable(const PlannedDevice& device) {
  return static_cast<int64_t>((1 - kShareLeft) * static_cast<double>(device.free_bytes));
}

bool AutomaticSlots(const ModelOptions& options) { return options.vram_experts.empty() || options.vram_experts == "auto"; }

// Memory for experts of one worker that --vram-experts asks for; nothing: it takes what is left.
absl::StatusOr<std::optional<int64_t>> ExpertBytes(const ModelOptions& options, bool gpu) {
  if (AutomaticSlots(options)) {
    return gpu ? std::nullopt : std::optional<int64_t>(0);
  }
  ASSIGN_OR_RETURN(const int64_t bytes, ParseByteSize(options.vram_experts));
  return bytes;
}

absl::Status AddGpusByHand(const ModelOptions& options, PlannedMachine* machine) {
  std::vector<int64_t> sizes = machine->by_hand.gpu_bytes;
  if (!options.gpus.empty()) return InvalidArgument("--gpu-memory is for GPUs that are not here, --gpus names some that are");
  if (options.backend == "cpu" || options.backend == "reference") {
    return InvalidArgument("--gpu-memory gives GPUs, and --backend %s uses none", options.backend);
  }
  if (sizes.size() == 1 && options.workers > 1) sizes.assign(static_cast<size_t>(options.workers), sizes.front());
  if (options.workers != 0 && sizes.size() != static_cast<size_t>(options.workers)) {
    return InvalidArgument("--gpu-memory has %d sizes and --workers is %d: want one size, or one for each", sizes.size(),
                           options.workers);
  }
  for (size_t gpu = 0; gpu < sizes.size(); ++gpu) {
    machine->devices.push_back(
        {.name = absl::StrFormat("cuda:%d", gpu), .gpu = true, .total_bytes = sizes[gpu], .free_bytes = sizes[gpu]});
  }
  machine->gpus_by_hand = true;
  return absl::OkStatus();
}

// Rates of a worker's device and link. `slots`: that it has.
absl::StatusOr<WorkerRates> Measure(const ExpertLayout& layout, Ops& ops, const PlannedDevice& device, int64_t slots) {
  WorkerRates rates;
  double link = 0;
  if (slots > 0 && !device.of_host) {
    ASSIGN_OR_RETURN(link, MeasureCopies(ops, layout.bytes, kCopyTime));
  }
  if (!device.in_place) rates.link.alone = link;
  if (!device.gpu) return rates;
  ASSIGN_OR_RETURN(rates.experts, MeasureExpertsOn(ops, layout, {.many_rows = 128, .many_row_experts = 32}));
  if (device.in_place && link > 0) rates.experts.read_bytes_per_second = std::min(rates.experts.read_bytes_per_second, link);
  ASSIGN_OR_RETURN(rates.operation_seconds, MeasureOperation(ops, layout.down.rows));
  return rates;
}

std::optional<FoundRates> KeptRates(const ModelOptions& options, const std::string& key, size_t num_workers) {
  if (options.probe) return std::nullopt;
  const absl::StatusOr<MachineRates> kept = ReadRates(RatesDirectory(), key, absl::Now());
  if (!kept.ok() || kept->workers.size() != num_workers) return std::nullopt;
  FoundRates found;
  found.rates = *kept;
  found.source = "kept from a start on " + LocalMinute(kept->measured);
  return found;
}

absl::StatusOr<FoundRates> KeptOrMeasured(const ModelOptions& options, const PredictedModel& model, const PlannedMachine& machine,
                                          const std::vector<int64_t>& slots) {
  const BackendOptions host_options = {.kind = "cpu", .num_threads = options.threads, .isa = options.isa};
  ASSIGN_OR_RETURN(const std::unique_ptr<Ops> host, CreateOps(host_options));
  const bool gpus_here = machine.gpu() && !machine.gpus_by_hand;
  std::vector<std::unique_ptr<Ops>> gpus;
  std::vector<RatedWorker> rated;
  for (size_t w = 0; w < machine.devices.size(); ++w) {
    if (gpus_here) {
      ASSIGN_OR_RETURN(gpus.emplace_back(), OpsOf(machine.devices[w]));
    }
    rated.push_back({.device = gpus_here ? gpus.back()->name() : host->name(),
                     .transport = options.expert_transport == "grpc" ? "grpc" : "shm",
                     .has_slots = slots[w] > 0 && !machine.gpus_by_hand && !machine.devices[w].in_place,
                     .in_place = machine.devices[w].in_place && !machine.gpus_by_hand});
  }
  // For GPUs that are not here, the rates of a host without GPUs.
  if (machine.gpus_by_hand) rated.resize(1);
  if (std::optional<FoundRates> kept = KeptRates(options, RatesKey(host->name(), model.arena(), rated), rated.size())) {
    return *std::move(kept);
  }
  const LateWord word("measuring how fast this machine reads and computes experts");
  FoundRates found;
  const ExpertLayout& layout = model.arena().layer(model.arena().FirstWithExperts());
  ASSIGN_OR_RETURN(found.rates.host, MeasureExpertsOn(*host, layout, {.curve = true}));
  found.rates.host_beside_links = found.rates.host;
  for (size_t w = 0; w < machine.devices.size() && !machine.gpus_by_hand; ++w) {
    ASSIGN_OR_RETURN(found.rates.workers.emplace_back(),
                     Measure(layout, gpus_here ? *gpus[w] : *host, machine.devices[w], slots[w]));
  }
  found.source = "measured now, one after the other: a start of the server measures all at once and keeps that";
  return found;
}

}  // namespace

absl::StatusOr<double> ParseRate(const std::string& text) {
  const std::string spaceless = absl::StrReplaceAll(text, {{" ", ""}});
  const absl::string_view number = absl::StripSuffix(spaceless, "/s");
  const size_t unit = number.find_last_of("0123456789.") + 1;  // npos + 1 is 0: no digit
  const absl::StatusOr<double> count = ParseDecimal(std::string(number.substr(0, unit)), 0, kMaxRate);
  const absl::StatusOr<int64_t> scale = unit == number.size() ? 1 : ParseByteSize("1" + std::string(number.substr(unit)));
  if (!count.ok() || !scale.ok() || *count * static_cast<double>(*scale) > kMaxRate) {
    return InvalidArgument("'%s', want bytes a second such as 25GB/s or 25e9, at most %g", text, kMaxRate);
  }
  return *count * static_cast<double>(*scale);
}

int64_t PlannedMachine::SmallestGpu() const {
  if (!gpu()) return 0;
  const auto smaller = [](const PlannedDevice& a, const PlannedDevice& b) { return a.total_bytes < b.total_bytes; };
  return std::min_element(devices.begin(), devices.end(), smaller)->total_bytes;
}

absl::StatusOr<PlannedMachine> PlannedMachineOf(const ModelOptions& options, const MachineByHand& by_hand) {
  PlannedMachine machine{.host_bytes = by_hand.host_bytes > 0 ? by_hand.host_bytes : ReadHostMemory().available_bytes,
                         .by_hand = by_hand};
  if (!by_hand.gpu_bytes.empty()) {
    RETURN_IF_ERROR(AddGpusByHand(options, &machine));
    return machine;
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, options.Devices());
  for (const std::string& name : names) {
    PlannedDevice& device = machine.devices.emplace_back(PlannedDevice{.name = name, .gpu = name.starts_with("cuda:")});
    device.in_place = options.unified == "on";
    if (!device.gpu) continue;
    ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops, OpsOf(device));
    ASSIGN_OR_RETURN(const DeviceMemoryInfo memory, ops->MemoryInfo());
    device.total_bytes = memory.total_bytes;
    device.free_bytes = memory.free_bytes;
    device.of_host = memory.of_host;
    device.in_place |= options.unified == "auto" && memory.of_host && options.ooae && AutomaticSlots(options);
  }
  return machine;
}

absl::StatusOr<std::vector<int64_t>> SlotsOf(const ModelOptions& options, const PredictedModel& model,
                                             const PlannedMachine& machine) {
  std::vector<int64_t> slots;
  for (size_t w = 0; w < machine.devices.size(); ++w) {
    const WorkerPlacement& worker = model.placement().workers[w];
    const int64_t all = model.arena().num_records(worker.layers.first, worker.layers.end);
    if (machine.devices[w].in_place) {
      slots.push_back(all);
      continue;
    }
    ASSIGN_OR_RETURN(const std::optional<int64_t> asked, ExpertBytes(options, machine.gpu()));
    const int64_t bytes = asked ? *asked : Usable(machine.devices[w]) - worker.dense_bytes - worker.kv_bytes;
    slots.push_back(std::clamp<int64_t>(bytes / model.arena().max_record_bytes(), 0, all));
  }
  return slots;
}

absl::StatusOr<FoundRates> RatesOf(const ModelOptions& options, const PredictedModel& model, const PlannedMachine& machine) {
  const MachineByHand& by_hand = machine.by_hand;
  ASSIGN_OR_RETURN(std::vector<int64_t> slots, SlotsOf(options, model, machine));
  FoundRates found;
  const bool host_by_hand = by_hand.host_read > 0 && by_hand.host_flops > 0;
  if (machine.gpus_by_hand && host_by_hand) {
    found.source = "given by hand";
  } else {
    ASSIGN_OR_RETURN(found, KeptOrMeasured(options, model, machine, slots));
    if (by_hand.host_read > 0 || by_hand.host_flops > 0 || by_hand.link > 0 || by_hand.gpu_flops > 0) {
      found.source += "; some by hand";
    }
  }
  found.slots = std::move(slots);
  if (machine.gpus_by_hand) found.rates.workers.assign(machine.devices.size(), {.link = {.alone = kAssumedLink}});
  for (ExpertRates* const host : {&found.rates.host, &found.rates.host_beside_links}) {
    if (by_hand.host_read > 0) host->read_bytes_per_second = by_hand.host_read;
    if (by_hand.host_flops > 0) host->flops_per_second = by_hand.host_flops;
  }
  for (WorkerRates& worker : found.rates.workers) {
    if (by_hand.link > 0) worker.link = {.alone = by_hand.link};
    if (by_hand.gpu_flops > 0) worker.experts.flops_per_second = by_hand.gpu_flops;
  }
  return found;
}

Fit FitOf(const ModelOptions& options, const PredictedModel& model, const PlannedMachine& machine) {
  Fit fit{.host_needed_bytes = model.arena().bytes()};
  const absl::StatusOr<std::optional<int64_t>> asked = ExpertBytes(options, machine.gpu());
  const int64_t experts = asked.ok() ? asked->value_or(0) : 0;
  for (size_t w = 0; w < machine.devices.size(); ++w) {
    const WorkerPlacement& worker = model.placement().workers[w];
    const int64_t needed = worker.dense_bytes + worker.kv_bytes + experts;
    const PlannedDevice& device = machine.devices[w];
    if (!device.gpu || device.of_host) {
      if (!device.elsewhere) fit.host_needed_bytes += needed;
    } else if (needed > Usable(device)) {
      fit.lacks.push_back({.where = "GPU " + device.name.substr(5), .needed_bytes = needed, .had_bytes = Usable(device)});
    }
  }
  if (fit.host_needed_bytes > machine.host_bytes) {
    fit.lacks.insert(fit.lacks.begin(),
                     {.where = "host memory", .needed_bytes = fit.host_needed_bytes, .had_bytes = machine.host_bytes});
  }
  return fit;
}

}  // namespace ferry
