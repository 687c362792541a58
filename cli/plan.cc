// `ferry plan`: what would go where, why, and how fast it would be, without loading the model.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/plan_choices.h"
#include "cli/plan_hosts.h"
#include "cli/prompt.h"
#include "common/byte_size.h"
#include "common/command_line.h"
#include "common/number.h"
#include "coordinator/planning/decode_prediction.h"
#include "coordinator/planning/prefill_prediction.h"

namespace ferry {
namespace {

constexpr double kGiB = 1 << 30;
constexpr size_t kMaxGpus = 64;  // as many as workers

struct PlanOptions {
  ModelOptions model;
  std::string prompts = "512,2048,4096";
  bool json = false;
  std::string hosts;  // a file that describes a cluster; empty: one machine
  MachineByHand machine;
};

// "24GiB" or "24GiB,16GiB".
absl::StatusOr<std::vector<int64_t>> ParseSizes(const std::string& text) {
  std::vector<int64_t> sizes;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::StatusOr<int64_t> size = ParseByteSize({part.data(), part.size()});
    if (!size.ok() || *size == 0) return InvalidArgument("'%s', want sizes such as 24GiB or 24GiB,16GiB", text);
    sizes.push_back(*size);
  }
  if (sizes.size() > kMaxGpus) return InvalidArgument("a list of %d sizes, want at most %d", sizes.size(), kMaxGpus);
  return sizes;
}

CLI::Option* AddRate(CLI::App& app, const std::string& names, double& target, const std::string& help) {
  return command_line::AddValue(app, names, "RATE", help, [&target](const std::string& text) -> absl::Status {
    ASSIGN_OR_RETURN(target, ParseRate(text));
    return absl::OkStatus();
  });
}

void PrintPlacement(const ModelConfig& config, const ModelSizes& sizes, const ArenaLayout& arena, const Placement& placement,
                    const PlannedMachine& machine) {
  std::printf("coordinator: %s of experts in host memory\n", HumanBytes(arena.bytes()).c_str());
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    const WorkerPlacement& worker = placement.workers[w];
    int64_t experts = 0;
    for (int64_t layer = worker.layers.first; layer < worker.layers.end; ++layer) experts += sizes.expert_bytes[layer];
    std::printf("worker %zu on %s: layers %lld-%lld%s%s; dense %s, KV cache %s; its layers' experts are %s\n", w,
                machine.devices[w].name.c_str(), static_cast<long long>(worker.layers.first),
                static_cast<long long>(worker.layers.end - 1), worker.layers.first == 0 ? ", embedding" : "",
                worker.layers.end == config.num_layers ? ", output" : "", HumanBytes(worker.dense_bytes).c_str(),
                HumanBytes(worker.kv_bytes).c_str(), HumanBytes(experts).c_str());
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

void PrintRates(const FoundRates& found, const PredictionInput& input, const PlannedMachine& machine) {
  const MachineRates& rates = input.rates;
  std::printf("\nrates, %s:\n", found.source.c_str());
  std::printf("  host: experts read at %s and multiplied at %.0f GFLOP/s, %s and %.0f beside the links\n",
              HumanRate(rates.host.read_bytes_per_second).c_str(), rates.host.flops_per_second / 1e9,
              HumanRate(rates.host_beside_links.read_bytes_per_second).c_str(), rates.host_beside_links.flops_per_second / 1e9);
  for (size_t w = 0; w < rates.workers.size(); ++w) {
    const WorkerRates& worker = rates.workers[w];
    if (machine.devices[w].in_place) {
      std::printf("  worker %zu: experts where they lie", w);
    } else {
      std::printf("  worker %zu: %lld expert slots", w, static_cast<long long>(input.slots[w]));
    }
    if (worker.link.alone > 0) {
      const bool assumed = machine.gpus_by_hand && machine.by_hand.link == 0;
      std::printf(", link %s%s", HumanRate(worker.link.alone).c_str(), assumed ? " (assumed)" : "");
    }
    if (worker.link.beside_host > 0) std::printf(", %s beside the host", HumanRate(worker.link.beside_host).c_str());
    if (machine.gpu())
      std::printf(", experts at %.0f TFLOP/s%s", worker.experts.flops_per_second / 1e12,
                  found.rates.workers[w].experts.flops_per_second > 0 ? "" : " (assumed)");
    std::printf("\n");
  }
}

void PrintPrefill(const PrefillPrediction& prefill, int64_t tokens) {
  std::printf("  prefill of %6lld tokens: %8.0f t/s (%.0f experts active: %.0f shipped, %.0f on the host)",
              static_cast<long long>(tokens), prefill.tokens_per_second(), prefill.activated, prefill.shipped, prefill.on_host);
  if (prefill.helped > 0) std::printf(", %.0f by another worker than their layer's", prefill.helped);
  if (prefill.step_rows < tokens) std::printf(", in steps of %lld", static_cast<long long>(prefill.step_rows));
  std::printf("\n");
}

// "does not fit: host memory lacks 42.1 GiB (it needs 61.2 GiB and can have 19.1 GiB)"
void PrintFit(const Fit& fit, const PlannedMachine& machine) {
  if (fit.lacks.empty()) {
    std::printf("\nit fits: %s of %s of host memory", HumanBytes(static_cast<double>(fit.host_needed_bytes)).c_str(),
                HumanBytes(static_cast<double>(machine.host_bytes)).c_str());
    std::printf(machine.gpu() ? ", and the GPUs have room for weights and KV cache\n" : "\n");
    return;
  }
  std::printf("\nit does not fit:\n");
  bool gpu = false;
  for (const Lack& lack : fit.lacks) {
    gpu |= lack.where != "host memory";
    std::printf("  %s lacks %.2f GiB: it needs %.2f GiB and %.2f GiB can be had\n", lack.where.c_str(),
                static_cast<double>(lack.missing_bytes()) / kGiB, static_cast<double>(lack.needed_bytes) / kGiB,
                static_cast<double>(lack.had_bytes) / kGiB);
  }
  if (gpu) std::printf("  GPUs need less with a smaller -c, with -ctk q8_0 -ctv q8_0, or with more GPUs\n");
}

void PrintChoices(const std::vector<Choice>& choices, int64_t prompt_tokens) {
  if (choices.size() > 1) {
    std::printf("\nchoices, by a prompt of %lld tokens and an answer of %lld:\n", static_cast<long long>(prompt_tokens),
                static_cast<long long>(kAnswerTokens));
    std::printf("| %-15s | %-8s | %7s | %11s | %10s | %9s |\n", "workers", "fits", "slots", "prefill t/s", "decode t/s",
                "seconds");
    std::printf("|-----------------|----------|---------|-------------|------------|-----------|\n");
    for (const Choice& choice : choices) {
      std::printf("| %-15s | %-8s | %7lld | %11.0f | %10.1f | %9.2f |\n", choice.name.c_str(),
                  choice.fit.lacks.empty() ? "yes" : "no", static_cast<long long>(choice.slots), choice.prefill_rate,
                  choice.decode_rate, choice.seconds);
    }
  }
  const Choice* const quickest = Quickest(choices);
  if (quickest == nullptr) return;
  std::printf("\ntype%s: %s\n", choices.size() > 1 ? ", for the quickest that fits" : "", quickest->command.c_str());
}

nlohmann::json LacksJson(const Fit& fit) {
  nlohmann::json lacks = nlohmann::json::array();
  for (const Lack& lack : fit.lacks) {
    lacks.push_back({{"where", lack.where},
                     {"needed_bytes", lack.needed_bytes},
                     {"had_bytes", lack.had_bytes},
                     {"missing_bytes", lack.missing_bytes()}});
  }
  return lacks;
}

nlohmann::json ChoicesJson(const std::vector<Choice>& choices) {
  nlohmann::json result = nlohmann::json::array();
  for (const Choice& choice : choices) {
    result.push_back({{"workers", choice.name},
                      {"fits", choice.fit.lacks.empty()},
                      {"lacks", LacksJson(choice.fit)},
                      {"slots", choice.slots},
                      {"prefill_tokens_per_second", choice.prefill_rate},
                      {"decode_tokens_per_second", choice.decode_rate},
                      {"seconds", choice.seconds},
                      {"command", choice.command}});
  }
  return result;
}

nlohmann::json WorkersJson(const Placement& placement, const PlannedMachine& machine) {
  nlohmann::json workers = nlohmann::json::array();
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    const WorkerPlacement& worker = placement.workers[w];
    workers.push_back({{"device", machine.devices[w].name},
                       {"first_layer", worker.layers.first},
                       {"last_layer", worker.layers.end - 1},
                       {"dense_bytes", worker.dense_bytes},
                       {"kv_bytes", worker.kv_bytes}});
  }
  return workers;
}

nlohmann::json PrefillJson(const PrefillPrediction& prefill) {
  return {{"tokens", prefill.tokens},       {"tokens_per_second", prefill.tokens_per_second()},
          {"step_rows", prefill.step_rows}, {"activated", prefill.activated},
          {"shipped", prefill.shipped},     {"helped", prefill.helped},  // of those shipped
          {"on_host", prefill.on_host},     {"bytes_shipped", prefill.bytes_shipped}};
}

// What a plan says.
struct PlanResult {
  const PredictedModel& model;
  const PlannedMachine& machine;
  const FoundRates& found;
  Fit fit;
  std::vector<PrefillPrediction> prefills;  // of each length
  DecodePrediction decode;
  std::vector<Choice> choices;
};

void PrintText(const PlanResult& plan, const PredictionInput& input) {
  const PredictedModel& model = plan.model;
  PrintPlacement(model.config(), model.sizes(), model.arena(), model.placement(), plan.machine);
  PrintFit(plan.fit, plan.machine);
  PrintRates(plan.found, input, plan.machine);
  std::printf("predicted, with nothing resident at the start of a prompt:\n");
  for (const PrefillPrediction& prefill : plan.prefills) PrintPrefill(prefill, prefill.tokens);
  std::printf("  decode: %.1f t/s (%s from host memory a token; slots hold %.0f %% of what a token uses)\n",
              1 / plan.decode.seconds_per_token, HumanBytes(plan.decode.host_bytes).c_str(),
              100 * std::min(plan.decode.resident_share, 1.0));
  PrintChoices(plan.choices, plan.prefills.back().tokens);
}

void PrintJson(const PlanResult& plan) {
  nlohmann::json prefills = nlohmann::json::array();
  for (const PrefillPrediction& prefill : plan.prefills) prefills.push_back(PrefillJson(prefill));
  nlohmann::json result = {{"workers", WorkersJson(plan.model.placement(), plan.machine)},
                           {"arena_bytes", plan.model.arena().bytes()},
                           {"fits", plan.fit.lacks.empty()},
                           {"lacks", LacksJson(plan.fit)},
                           {"host_needed_bytes", plan.fit.host_needed_bytes},
                           {"host_bytes", plan.machine.host_bytes},
                           {"prefill", prefills},
                           {"decode_tokens_per_second", 1 / plan.decode.seconds_per_token},
                           {"rates_source", plan.found.source},
                           {"rates", RatesJson(plan.found.rates)},
                           {"choices", ChoicesJson(plan.choices)}};
  if (const Choice* const quickest = Quickest(plan.choices)) result["command"] = quickest->command;
  std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

absl::Status Plan(const PlanOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, ParseLengths("-p", options.prompts));
  const MachineByHand& by_hand = options.machine;
  const bool rates_by_hand = by_hand.host_read > 0 || by_hand.host_flops > 0 || by_hand.link > 0 || by_hand.gpu_flops > 0;
  if (!options.hosts.empty() && (rates_by_hand || by_hand.host_bytes > 0 || !by_hand.gpu_bytes.empty())) {
    return InvalidArgument("--hosts describes every host's memory and rates: leave out the flags that give them");
  }
  if (!options.hosts.empty()) return PlanHosts(options.model, options.hosts, lengths, options.json);
  ASSIGN_OR_RETURN(const PlannedMachine machine, PlannedMachineOf(options.model, options.machine));
  ASSIGN_OR_RETURN(const std::unique_ptr<PredictedModel> model,
                   PredictedModel::Open(options.model, static_cast<int>(machine.devices.size()), machine.SmallestGpu()));
  ASSIGN_OR_RETURN(const FoundRates found, RatesOf(options.model, *model, machine));
  const PredictionInput input = model->Input(found.rates, found.slots, machine.gpu());
  PlanResult plan{.model = *model,
                  .machine = machine,
                  .found = found,
                  .fit = FitOf(options.model, *model, machine),
                  .decode = PredictDecode(input)};
  for (const int64_t tokens : lengths) plan.prefills.push_back(PredictPrefill(input, tokens));
  ASSIGN_OR_RETURN(plan.choices, ChoicesOf(options.model, *model, machine, found, lengths.back()));
  if (options.json) {
    PrintJson(plan);
  } else {
    PrintText(plan, input);
  }
  return absl::OkStatus();
}

}  // namespace

Command AddPlan(CLI::App& app) {
  auto options = std::make_shared<PlanOptions>();
  options->model.AddTo(app, /*model_required=*/true);
  AddText(app, "-p,--n-prompt", options->prompts, "prompt lengths to predict for (default " + options->prompts + ")");
  AddSwitch(app, "--json", options->json, "as JSON");
  const char* const rates = "Rates (where not given: kept by a start on this machine, or measured now)";
  AddRate(app, "--host-rate,--host-read-rate", options->machine.host_read, "bytes/s of experts read by the host: 80GB/s, 80e9")
      ->group(rates);
  AddDecimal(app, "--host-flops", options->machine.host_flops, 0, kMaxRate, "FLOP/s of expert products on the host")
      ->group(rates);
  AddRate(app, "--link-rate", options->machine.link, "bytes/s from host to GPU: 25GB/s")->group(rates);
  AddDecimal(app, "--gpu-flops", options->machine.gpu_flops, 0, kMaxRate, "FLOP/s of products on the GPU")->group(rates);
  const char* const memory = "A machine that is not here";
  command_line::AddValue(
      app, "--gpu-memory", "SIZES",
      "memory of its GPUs: 24GiB with --workers 2, or 24GiB,16GiB (its rates are assumed where they are not given)",
      [options](const std::string& text) -> absl::Status {
        ASSIGN_OR_RETURN(options->machine.gpu_bytes, ParseSizes(text));
        return absl::OkStatus();
      })
      ->group(memory);
  command_line::AddValue(app, "--host-memory", "SIZE", "memory of its host that a server may take: 128GiB",
                         [options](const std::string& text) -> absl::Status {
                           ASSIGN_OR_RETURN(options->machine.host_bytes, ParseByteSize(text));
                           return absl::OkStatus();
                         })
      ->group(memory);
  AddText(app, "--hosts", options->hosts,
          "file that describes the hosts of a cluster, as JSON (docs/cluster.md): plans for them, with what to type on each")
      ->group(memory);
  app.footer(Examples({"ferry plan -m model.gguf                       this machine",
                       "ferry plan -m model.gguf --hosts cluster.json  a cluster that is not here",
                       "ferry plan -m model.gguf --gpu-memory 24GiB --workers 2 --host-memory 128GiB --host-rate 80GB/s"}));
  return [options] { return Plan(*options); };
}

}  // namespace ferry
