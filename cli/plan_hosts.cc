#include "cli/plan_hosts.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/described_hosts.h"
#include "cli/plan_choices.h"
#include "cli/planned_machine.h"
#include "cli/predicted_model.h"
#include "cli/prompt.h"
#include "common/expert_wire.h"
#include "coordinator/planning/host_plan.h"

namespace ferry {
namespace {

constexpr double kLeastShare = 0.001;  // that is worth a line

// What the command says of a cluster.
struct ClusterPlan {
  std::vector<DescribedHost> hosts;
  std::vector<HostUse> uses;  // of all hosts but the first
  int64_t needed_bytes = 0;   // of the first host's memory
  std::vector<PrefillPrediction> prefills;
  DecodePrediction decode, alone;  // with all hosts, with the first alone
  std::vector<PrefillPrediction> prefills_alone;
  std::vector<std::vector<std::string>> commands;  // of each host; none: it is left out
};

// The first host's devices, and the flags that choose them.
ModelOptions OptionsOf(ModelOptions options, const DescribedHost& head) {
  if (head.gpu_bytes.empty()) options.backend = "cpu";
  if (head.cores > 0) options.threads = static_cast<int>(head.cores);
  options.workers = static_cast<int>(std::max<size_t>(head.gpu_bytes.size(), 1));
  return options;
}

FoundRates RatesOf(const DescribedHost& head, size_t num_workers, std::vector<int64_t> slots) {
  FoundRates found{.slots = std::move(slots), .source = "described"};
  found.rates.host = found.rates.host_beside_links = {.read_bytes_per_second = head.read, .flops_per_second = head.flops};
  const double link = head.gpu_bytes.empty() ? 0 : head.link > 0 ? head.link : kAssumedLink;
  found.rates.workers.assign(num_workers, {.link = {.alone = link}, .experts = {.flops_per_second = head.gpu_flops}});
  return found;
}

std::vector<CandidateHost> CandidatesOf(const std::vector<DescribedHost>& hosts) {
  std::vector<CandidateHost> candidates;
  for (size_t i = 1; i < hosts.size(); ++i) {
    candidates.push_back({.memory_bytes = hosts[i].memory_bytes,
                          .rates = {.read_bytes_per_second = hosts[i].read, .flops_per_second = hosts[i].flops},
                          .exchange_seconds = hosts[i].exchange_seconds,
                          .bytes_per_second = hosts[i].network_rate});
  }
  return candidates;
}

// Which of the others could be the first host; empty: none.
std::string RoomierHost(const std::vector<DescribedHost>& hosts, int64_t needed_bytes) {
  for (const DescribedHost& host : hosts) {
    if (host.memory_bytes >= needed_bytes) return absl::StrFormat("; %s has that memory: make it the first", host.name);
  }
  return "";
}

void AddCommands(const ModelOptions& options, ClusterPlan* plan) {
  const DescribedHost& head = plan->hosts.front();
  const bool several = std::any_of(plan->uses.begin(), plan->uses.end(), [](const HostUse& use) { return use.used; });
  std::vector<std::string> flags;
  if (head.gpu_bytes.empty()) flags = {"--backend", "cpu"};
  if (several) flags.insert(flags.end(), {"--cluster-listen", head.address});
  plan->commands.resize(plan->hosts.size());
  if (several) plan->commands[0].push_back("ferry cluster-init");
  plan->commands[0].push_back(ServeCommand(options, flags));
  for (size_t i = 1; i < plan->hosts.size(); ++i) {
    if (!plan->uses[i - 1].used) continue;
    const DescribedHost& host = plan->hosts[i];
    plan->commands[0].push_back(absl::StrFormat("ferry cluster-token     for %s, once the server runs", host.name));
    plan->commands[i].push_back(absl::StrFormat("ferry join %s --token fj-... --experts --memory %d%s", head.address,
                                                host.memory_bytes - ReserveOf(host.memory_bytes),
                                                host.cores > 0 ? absl::StrFormat(" --threads %d", host.cores) : ""));
  }
}

// Of the experts that a token uses and slots do not hold, the share that host i computes.
double DecodeShare(const ClusterPlan& plan, size_t host) {
  const double all = plan.decode.host_expert_bytes;
  size_t number = 0;
  double others = 0;
  for (size_t i = 1; i < plan.hosts.size(); ++i) {
    if (!plan.uses[i - 1].used) continue;
    const double bytes = plan.decode.expert_host_bytes[number++];
    others += bytes;
    if (i == host) return all > 0 ? bytes / all : 0;
  }
  return host == 0 && all > 0 ? 1 - others / all : 0;
}

void PrintHost(const ClusterPlan& plan, const PredictedModel& model, size_t number) {
  const DescribedHost& host = plan.hosts[number];
  std::printf("%s (%s, %s of memory%s)\n", host.name.c_str(), host.address.c_str(), HumanBytes(host.memory_bytes).c_str(),
              host.gpu_bytes.empty()
                  ? ""
                  : absl::StrFormat(", %d GPU%s", host.gpu_bytes.size(), host.gpu_bytes.size() == 1 ? "" : "s").c_str());
  if (number == 0) {
    for (size_t w = 0; w < model.placement().workers.size(); ++w) {
      const LayerRange& layers = model.placement().workers[w].layers;
      std::printf("  worker %zu: layers %lld-%lld\n", w, static_cast<long long>(layers.first),
                  static_cast<long long>(layers.end - 1));
    }
    std::printf("  all experts, %s\n", HumanBytes(model.arena().bytes()).c_str());
  } else if (const HostUse& use = plan.uses[number - 1]; use.used) {
    std::printf("  %lld of %lld expert records, %s\n", static_cast<long long>(use.records),
                static_cast<long long>(model.arena().num_records()), HumanBytes(use.bytes).c_str());
  } else {
    std::printf("  left out: %s\n", use.why.c_str());
    return;
  }
  if (const double share = DecodeShare(plan, number); share >= kLeastShare) {
    std::printf("  computes %.0f %% of the experts that a token of decode finds in no slot\n", 100 * share);
  }
  if (number > 0 && !host.gpu_bytes.empty()) {
    std::printf("  its GPUs are not used here: ferry-worker on them takes layers, which makes several prompts faster\n");
  }
}

void PrintText(const ClusterPlan& plan, const PredictedModel& model) {
  for (size_t i = 0; i < plan.hosts.size(); ++i) PrintHost(plan, model, i);
  std::printf(
      "why: the first host holds every record and the layers, and needs %s for that. Another one takes part when decode is\n"
      "     predicted to be faster by %.0f %% with it; each layer's experts are divided so that all end at the same time\n",
      HumanBytes(plan.needed_bytes).c_str(), 100 * (kWorthAHost - 1));
  std::printf("\npredicted, with nothing resident at the start of a prompt (the first host alone in brackets):\n");
  for (size_t i = 0; i < plan.prefills.size(); ++i) {
    std::printf("  prefill of %6lld tokens: %8.0f t/s (%.0f)\n", static_cast<long long>(plan.prefills[i].tokens),
                plan.prefills[i].tokens_per_second(), plan.prefills_alone[i].tokens_per_second());
  }
  std::printf("  decode: %.1f t/s (%.1f)\n", 1 / plan.decode.seconds_per_token, 1 / plan.alone.seconds_per_token);
  std::printf("\ntype:\n");
  for (size_t i = 0; i < plan.hosts.size(); ++i) {
    for (const std::string& command : plan.commands[i]) std::printf("  on %s: %s\n", plan.hosts[i].name.c_str(), command.c_str());
  }
}

void PrintJson(const ClusterPlan& plan, const PredictedModel& model) {
  nlohmann::json hosts = nlohmann::json::array(), prefills = nlohmann::json::array();
  for (size_t i = 0; i < plan.hosts.size(); ++i) {
    const HostUse use =
        i > 0
            ? plan.uses[i - 1]
            : HostUse{.used = true, .records = model.arena().num_records(), .bytes = static_cast<int64_t>(model.arena().bytes())};
    hosts.push_back({{"name", plan.hosts[i].name},
                     {"used", use.used},
                     {"why_not", use.why},
                     {"records", use.records},
                     {"record_bytes", use.bytes},
                     {"decode_share", use.used ? DecodeShare(plan, i) : 0},
                     {"commands", plan.commands[i]}});
    hosts.back()["workers"] = nlohmann::json::array();
    for (size_t w = 0; i == 0 && w < model.placement().workers.size(); ++w) {
      const LayerRange& layers = model.placement().workers[w].layers;
      hosts.back()["workers"].push_back({{"first_layer", layers.first}, {"last_layer", layers.end - 1}});
    }
  }
  for (size_t i = 0; i < plan.prefills.size(); ++i) {
    prefills.push_back({{"tokens", plan.prefills[i].tokens},
                        {"tokens_per_second", plan.prefills[i].tokens_per_second()},
                        {"first_host_alone", plan.prefills_alone[i].tokens_per_second()}});
  }
  const nlohmann::json result = {{"hosts", hosts},
                                 {"needed_bytes", plan.needed_bytes},
                                 {"prefill", prefills},
                                 {"decode_tokens_per_second", 1 / plan.decode.seconds_per_token},
                                 {"decode_first_host_alone", 1 / plan.alone.seconds_per_token}};
  std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

absl::Status PlanHosts(const ModelOptions& given, const std::string& path, const std::vector<int64_t>& lengths, bool json) {
  ClusterPlan plan;
  ASSIGN_OR_RETURN(plan.hosts, ReadHosts(path));
  const DescribedHost& head = plan.hosts.front();
  const ModelOptions options = OptionsOf(given, head);
  ASSIGN_OR_RETURN(const PlannedMachine machine,
                   PlannedMachineOf(options, {.gpu_bytes = head.gpu_bytes, .host_bytes = head.memory_bytes}));
  ASSIGN_OR_RETURN(const std::unique_ptr<PredictedModel> model,
                   PredictedModel::Open(options, static_cast<int>(machine.devices.size()), machine.SmallestGpu()));
  const Fit fit = FitOf(options, *model, machine);
  plan.needed_bytes = fit.host_needed_bytes;
  if (!fit.lacks.empty()) {
    const Lack& lack = fit.lacks.front();
    return FailedPrecondition("%s, the first host of %s, lacks %s: %s has to hold %s and can hold %s%s", head.name, path,
                              HumanBytes(lack.missing_bytes()), lack.where, HumanBytes(lack.needed_bytes),
                              HumanBytes(lack.had_bytes), RoomierHost(plan.hosts, fit.host_needed_bytes));
  }
  ASSIGN_OR_RETURN(std::vector<int64_t> slots, SlotsOf(options, *model, machine));
  const FoundRates found = RatesOf(head, machine.devices.size(), std::move(slots));
  PredictionInput input = model->Input(found.rates, found.slots, machine.gpu());
  plan.alone = PredictDecode(input);
  for (const int64_t tokens : lengths) plan.prefills_alone.push_back(PredictPrefill(input, tokens));
  plan.uses = ChooseExpertHosts(CandidatesOf(plan.hosts), kMaxExchangeRows * model->config().router.top_k, &input);
  plan.decode = PredictDecode(input);
  for (const int64_t tokens : lengths) plan.prefills.push_back(PredictPrefill(input, tokens));
  AddCommands(options, &plan);
  if (json) {
    PrintJson(plan, *model);
  } else {
    PrintText(plan, *model);
  }
  return absl::OkStatus();
}

}  // namespace ferry
