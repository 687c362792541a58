// `ferry plan`: what would go where, why, and how fast it would be, without loading the model.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/commands.h"
#include "cli/predicted_model.h"
#include "cli/prompt.h"
#include "common/command_line.h"

namespace ferry {
namespace {

constexpr double kMaxRate = 1e18;  // bytes or operations a second

struct PlanOptions {
  ModelOptions model;
  std::string prompts = "512,2048,4096";
  bool json = false;
  double host_read = 0, host_flops = 0, link = 0, gpu_flops = 0;  // rates given by hand; 0: found
};

absl::StatusOr<FoundRates> Rates(const PlanOptions& options, const PredictedModel& model,
                                 const std::vector<std::string>& devices) {
  ASSIGN_OR_RETURN(FoundRates found, RatesOfThisMachine(options.model, model, devices));
  for (ExpertRates* const host : {&found.rates.host, &found.rates.host_beside_links}) {
    if (options.host_read > 0) host->read_bytes_per_second = options.host_read;
    if (options.host_flops > 0) host->flops_per_second = options.host_flops;
  }
  for (WorkerRates& worker : found.rates.workers) {
    if (options.link > 0) worker.link = {.alone = options.link};
    if (options.gpu_flops > 0) worker.experts.flops_per_second = options.gpu_flops;
  }
  if (options.host_read > 0 || options.host_flops > 0 || options.link > 0 || options.gpu_flops > 0) {
    found.source += "; some by hand";
  }
  return found;
}

void PrintPlacement(const ModelConfig& config, const ModelSizes& sizes, const ArenaLayout& arena, const Placement& placement,
                    const std::vector<std::string>& devices) {
  std::printf("coordinator: %s of experts in host memory\n", HumanBytes(arena.bytes()).c_str());
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    const WorkerPlacement& worker = placement.workers[w];
    int64_t experts = 0;
    for (int64_t layer = worker.layers.first; layer < worker.layers.end; ++layer) experts += sizes.expert_bytes[layer];
    std::printf("worker %zu on %s: layers %lld-%lld%s%s; dense %s, KV cache %s; its layers' experts are %s\n", w,
                devices[w].c_str(), static_cast<long long>(worker.layers.first), static_cast<long long>(worker.layers.end - 1),
                worker.layers.first == 0 ? ", embedding" : "", worker.layers.end == config.num_layers ? ", output" : "",
                HumanBytes(worker.dense_bytes).c_str(), HumanBytes(worker.kv_bytes).c_str(), HumanBytes(experts).c_str());
  }
  std::printf(
      "why: layers are divided so that the heaviest worker's bytes (dense and experts) are as few as can be; every expert\n"
      "     stays in host memory, since %s do not have to fit anywhere else\n",
      HumanBytes(arena.bytes()).c_str());
  std::printf("KV cache: %lld tokens in blocks of %lld for all requests; %lld requests at once\n",
              static_cast<long long>(placement.cache.num_blocks * kKvBlockTokens), static_cast<long long>(kKvBlockTokens),
              static_cast<long long>(placement.cache.num_slots));
  std::printf("a step takes up to %lld tokens (-b)\n", static_cast<long long>(placement.cache.max_batch_tokens));
}

void PrintRates(const FoundRates& found, const PredictionInput& input, bool gpu) {
  const MachineRates& rates = input.rates;
  std::printf("\nrates, %s:\n", found.source.c_str());
  std::printf("  host: experts read at %s and multiplied at %.0f GFLOP/s, %s and %.0f beside the links\n",
              HumanRate(rates.host.read_bytes_per_second).c_str(), rates.host.flops_per_second / 1e9,
              HumanRate(rates.host_beside_links.read_bytes_per_second).c_str(), rates.host_beside_links.flops_per_second / 1e9);
  for (size_t w = 0; w < rates.workers.size(); ++w) {
    const WorkerRates& worker = rates.workers[w];
    std::printf("  worker %zu: %lld expert slots", w, static_cast<long long>(input.slots[w]));
    if (worker.link.alone > 0) std::printf(", link %s", HumanRate(worker.link.alone).c_str());
    if (worker.link.beside_host > 0) std::printf(", %s beside the host", HumanRate(worker.link.beside_host).c_str());
    if (gpu)
      std::printf(", experts at %.0f TFLOP/s%s", worker.experts.flops_per_second / 1e12,
                  found.rates.workers[w].experts.flops_per_second > 0 ? "" : " (assumed)");
    std::printf("\n");
  }
}

void PrintPrefill(const PrefillPrediction& prefill, int64_t tokens) {
  std::printf("  prefill of %6lld tokens: %8.0f t/s (%.0f experts active: %.0f shipped, %.0f on the host)",
              static_cast<long long>(tokens), prefill.tokens_per_second(), prefill.activated, prefill.shipped, prefill.on_host);
  if (prefill.step_rows < tokens) std::printf(", in steps of %lld", static_cast<long long>(prefill.step_rows));
  std::printf("\n");
}

nlohmann::json WorkersJson(const Placement& placement, const std::vector<std::string>& devices) {
  nlohmann::json workers = nlohmann::json::array();
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    const WorkerPlacement& worker = placement.workers[w];
    workers.push_back({{"device", devices[w]},
                       {"first_layer", worker.layers.first},
                       {"last_layer", worker.layers.end - 1},
                       {"dense_bytes", worker.dense_bytes},
                       {"kv_bytes", worker.kv_bytes}});
  }
  return workers;
}

absl::Status Plan(const PlanOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, ParseLengths(options.prompts));
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, options.model.Devices());
  ASSIGN_OR_RETURN(const std::unique_ptr<PredictedModel> model,
                   PredictedModel::Open(options.model, static_cast<int>(devices.size()), ModelOptions::GpuBytes(devices)));
  const Placement& placement = model->placement();
  const ArenaLayout& arena = model->arena();
  const bool gpu = devices[0].starts_with("cuda");
  ASSIGN_OR_RETURN(const FoundRates found, Rates(options, *model, devices));
  const PredictionInput input = model->Input(found.rates, found.slots, gpu);
  const DecodePrediction decode = PredictDecode(input);
  nlohmann::json prefills = nlohmann::json::array();
  if (!options.json) {
    PrintPlacement(model->config(), model->sizes(), arena, placement, devices);
    PrintRates(found, input, gpu);
    std::printf("predicted, with nothing resident at the start of a prompt:\n");
  }
  for (const int64_t tokens : lengths) {
    const PrefillPrediction prefill = PredictPrefill(input, tokens);
    if (options.json) {
      prefills.push_back({{"tokens", tokens},
                          {"tokens_per_second", prefill.tokens_per_second()},
                          {"step_rows", prefill.step_rows},
                          {"activated", prefill.activated},
                          {"shipped", prefill.shipped},
                          {"on_host", prefill.on_host},
                          {"bytes_shipped", prefill.bytes_shipped}});
    } else {
      PrintPrefill(prefill, tokens);
    }
  }
  if (!options.json) {
    std::printf("  decode: %.1f t/s (%s from host memory a token; slots hold %.0f %% of what a token uses)\n",
                1 / decode.seconds_per_token, HumanBytes(decode.host_bytes).c_str(), 100 * decode.resident_share);
    return absl::OkStatus();
  }
  const nlohmann::json result = {{"workers", WorkersJson(placement, devices)},
                                 {"arena_bytes", arena.bytes()},
                                 {"prefill", prefills},
                                 {"decode_tokens_per_second", 1 / decode.seconds_per_token},
                                 {"rates_source", found.source},
                                 {"rates", RatesJson(found.rates)}};
  std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddPlan(CLI::App& app) {
  auto options = std::make_shared<PlanOptions>();
  options->model.AddTo(app, /*model_required=*/true);
  AddText(app, "-p,--n-prompt", options->prompts, "prompt lengths to predict for (default " + options->prompts + ")");
  AddSwitch(app, "--json", options->json, "as JSON");
  const char* const rates = "Rates (where not given: kept by a start on this machine, or measured now)";
  AddDecimal(app, "--host-read-rate", options->host_read, 0, kMaxRate, "bytes/s of experts read by the host")->group(rates);
  AddDecimal(app, "--host-flops", options->host_flops, 0, kMaxRate, "FLOP/s of expert products on the host")->group(rates);
  AddDecimal(app, "--link-rate", options->link, 0, kMaxRate, "bytes/s from host to GPU")->group(rates);
  AddDecimal(app, "--gpu-flops", options->gpu_flops, 0, kMaxRate, "FLOP/s of products on the GPU")->group(rates);
  return [options] { return Plan(*options); };
}

}  // namespace ferry
