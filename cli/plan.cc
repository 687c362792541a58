// `ferry plan`: what would go where, why, and how fast it would be, without loading the model.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "common/gguf.h"
#include "coordinator/expert_store.h"
#include "coordinator/host_rates.h"
#include "coordinator/placement.h"
#include "coordinator/prediction.h"

namespace ferry {
namespace {

struct PlanOptions {
  ModelOptions model;
  std::string prompts = "512,2048,4096";
  bool json = false;
  MachineRates rates;  // what is given by hand
};

// What a worker's products reach, of the rates measured: see docs/performance.md.
constexpr double kGpuLinkRate = 50e9;      // until a worker has measured its own: PCIe 5 x16
constexpr double kGpuProductRate = 300e12;
constexpr double kGpuReadRate = 2e12;
constexpr double kStepOverheadSeconds = 0.3e-3;

absl::StatusOr<MachineRates> Rates(const PlanOptions& options, const ArenaLayout& arena, bool gpu) {
  MachineRates rates = options.rates;
  if (rates.host_read_bytes_per_second == 0 || rates.host_flops_per_second == 0) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Ops> ops,
                     CreateOps({.kind = "cpu", .num_threads = options.model.threads, .isa = options.model.isa}));
    ASSIGN_OR_RETURN(const HostExpertRates host, MeasureHostExpertsOn(*ops, arena.layer(0)));
    if (rates.host_read_bytes_per_second == 0) rates.host_read_bytes_per_second = host.read_bytes_per_second;
    if (rates.host_flops_per_second == 0) rates.host_flops_per_second = host.flops_per_second;
  }
  if (gpu) {
    if (rates.link_bytes_per_second == 0) rates.link_bytes_per_second = kGpuLinkRate;
    if (rates.device_flops_per_second == 0) rates.device_flops_per_second = kGpuProductRate;
    rates.device_read_bytes_per_second = kGpuReadRate;
  } else {
    rates.link_bytes_per_second = 0;
    rates.device_flops_per_second = rates.host_flops_per_second;
    rates.device_read_bytes_per_second = rates.host_read_bytes_per_second;
  }
  rates.step_overhead_seconds = kStepOverheadSeconds;
  return rates;
}

void PrintPlacement(const ModelConfig& config, const ModelSizes& sizes, const ArenaLayout& arena, const Placement& placement,
                    const std::vector<std::string>& devices) {
  std::printf("coordinator: %s of experts in host memory\n", HumanBytes(arena.bytes()).c_str());
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    const WorkerPlacement& worker = placement.workers[w];
    int64_t experts = 0;
    for (int64_t layer = worker.layers.first; layer < worker.layers.end; ++layer) experts += sizes.expert_bytes[layer];
    std::printf("worker %zu on %s: layers %lld-%lld%s%s; dense %s, KV cache %s; its layers' experts are %s\n", w, devices[w].c_str(),
                static_cast<long long>(worker.layers.first), static_cast<long long>(worker.layers.end - 1),
                worker.layers.first == 0 ? ", embedding" : "", worker.layers.end == config.num_layers ? ", output" : "",
                HumanBytes(worker.dense_bytes).c_str(), HumanBytes(worker.kv_bytes).c_str(), HumanBytes(experts).c_str());
  }
  std::printf("why: layers are divided so that the heaviest worker's bytes (dense and experts) are as few as can be; every expert\n"
              "     stays in host memory, since %s do not have to fit anywhere else\n", HumanBytes(arena.bytes()).c_str());
  std::printf("KV cache: %lld tokens in blocks of %lld for all requests; %lld requests at once\n",
              static_cast<long long>(placement.cache.num_blocks * kKvBlockTokens), static_cast<long long>(kKvBlockTokens),
              static_cast<long long>(placement.cache.num_slots));
  std::printf("a pass takes up to %lld tokens (-b)\n", static_cast<long long>(placement.cache.max_batch_tokens));
}

absl::Status Plan(const PlanOptions& options) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(options.model.model));
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromGguf(file));
  ASSIGN_OR_RETURN(const ArenaLayout arena, ArenaLayoutOf(file, config));
  ASSIGN_OR_RETURN(const ModelSizes sizes, ModelSizesOf(file, config));
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, options.model.Devices());
  ASSIGN_OR_RETURN(const PlacementOptions placement_options, options.model.Placement(static_cast<int>(devices.size()), ModelOptions::GpuBytes(devices)));
  ASSIGN_OR_RETURN(const Placement placement, PlanPlacement(config, sizes, placement_options));
  const bool gpu = devices[0].starts_with("cuda");
  ASSIGN_OR_RETURN(const MachineRates rates, Rates(options, arena, gpu));
  ASSIGN_OR_RETURN(const auto routing, RoutingProbabilities(file, config));
  // With a GPU every expert that is shipped finds a slot: the pool is a ring at least.
  const PredictionInput input = {.config = config, .sizes = sizes, .arena = arena, .placement = placement, .routing = routing,
                                 .rates = rates, .slots_per_worker = gpu ? config.num_experts : 0};
  const DecodePrediction decode = PredictDecode(input);
  nlohmann::json prefills = nlohmann::json::array();
  if (!options.json) {
    PrintPlacement(config, sizes, arena, placement, devices);
    std::printf("\nwith experts read at %s and multiplied at %.0f GFLOP/s on the host", HumanRate(rates.host_read_bytes_per_second).c_str(),
                rates.host_flops_per_second / 1e9);
    if (gpu) std::printf(", a link of %s and %.0f TFLOP/s on the GPU", HumanRate(rates.link_bytes_per_second).c_str(), rates.device_flops_per_second / 1e12);
    std::printf(", nothing resident:\n");
  }
  for (const absl::string_view part : absl::StrSplit(options.prompts, ',')) {
    int64_t tokens = 0;
    if (!absl::SimpleAtoi(part, &tokens) || tokens < 1) return InvalidArgument("-p has '%s', want prompt lengths such as 512,2048", part);
    const PrefillPrediction prefill = PredictPrefill(input, tokens);
    if (options.json) {
      prefills.push_back({{"tokens", tokens}, {"tokens_per_second", prefill.tokens_per_second()}, {"activated", prefill.activated},
                          {"shipped", prefill.shipped}, {"on_host", prefill.on_host}, {"bytes_shipped", prefill.bytes_shipped}});
    } else {
      std::printf("  prefill of %6lld tokens: %8.0f t/s (%.0f experts active, %.0f shipped, %.0f on the host)\n",
                  static_cast<long long>(tokens), prefill.tokens_per_second(), prefill.activated, prefill.shipped, prefill.on_host);
    }
  }
  if (!options.json) {
    std::printf("  decode: %.1f t/s (%s from host memory a token)\n", 1 / decode.seconds_per_token, HumanBytes(decode.host_bytes).c_str());
    return absl::OkStatus();
  }
  nlohmann::json workers = nlohmann::json::array();
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    const WorkerPlacement& worker = placement.workers[w];
    workers.push_back({{"device", devices[w]}, {"first_layer", worker.layers.first}, {"last_layer", worker.layers.end - 1},
                       {"dense_bytes", worker.dense_bytes}, {"kv_bytes", worker.kv_bytes}});
  }
  const nlohmann::json result = {{"workers", workers}, {"arena_bytes", arena.bytes()}, {"prefill", prefills},
                                 {"decode_tokens_per_second", 1 / decode.seconds_per_token},
                                 {"rates", {{"host_read_bytes_per_second", rates.host_read_bytes_per_second},
                                            {"host_flops_per_second", rates.host_flops_per_second},
                                            {"link_bytes_per_second", rates.link_bytes_per_second}}}};
  std::printf("%s\n", result.dump(2).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddPlan(CLI::App& app) {
  auto options = std::make_shared<PlanOptions>();
  options->model.AddTo(app, /*model_required=*/true);
  app.add_option("-p,--n-prompt", options->prompts, "prompt lengths to predict for")->capture_default_str();
  app.add_flag("--json", options->json, "as JSON");
  const char* const rates = "Rates (measured on this machine where not given)";
  app.add_option("--host-read-rate", options->rates.host_read_bytes_per_second, "bytes/s of experts read by the host")->group(rates);
  app.add_option("--host-flops", options->rates.host_flops_per_second, "FLOP/s of expert products on the host")->group(rates);
  app.add_option("--link-rate", options->rates.link_bytes_per_second, "bytes/s from host to GPU")->group(rates);
  app.add_option("--gpu-flops", options->rates.device_flops_per_second, "FLOP/s of products on the GPU")->group(rates);
  return [options] { return Plan(*options); };
}

}  // namespace ferry
