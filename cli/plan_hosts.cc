#include "cli/plan_hosts.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/cluster_choices.h"
#include "cli/cluster_commands.h"
#include "cli/described_hosts.h"
#include "cli/plan_choices.h"
#include "cli/predicted_model.h"
#include "cli/prompt.h"

namespace ferry {
namespace {

constexpr double kLeastShare = 0.001;  // that is worth a line

// What the command says of a cluster.
struct ClusterPlan {
  const PredictedModel& model;
  const std::vector<DescribedHost>& hosts;
  const std::vector<ClusterChoice>& choices;
  const ClusterChoice& taken;
  std::vector<std::vector<std::string>> commands;  // of each host; none: it is left out

  // The first host alone; null where that is not possible.
  const ClusterChoice* Alone() const {
    const ClusterChoice& first = choices.front();
    return first.fit.lacks.empty() && !first.UsesWorkersElsewhere() && !first.UsesEngines() ? &first : nullptr;
  }
  bool HasWorkers(size_t host) const {
    return std::any_of(taken.workers.begin(), taken.workers.end(),
                       [&](const ClusterWorker& worker) { return worker.host == host; });
  }
};

// The first host's engine, and the flags of all workers alike.
ModelOptions OptionsOf(ModelOptions options, const DescribedHost& head) {
  options.backend = "auto";
  options.gpus.clear();
  if (head.cores > 0) options.threads = static_cast<int>(head.cores);
  return options;
}

// Which of the others could be the first host; empty: none.
std::string RoomierHost(const std::vector<DescribedHost>& hosts, int64_t needed_bytes) {
  for (const DescribedHost& host : hosts) {
    if (host.memory_bytes >= needed_bytes) return absl::StrFormat("; %s has that memory: make it the first", host.name);
  }
  return "";
}

absl::Status NoRoom(const std::vector<DescribedHost>& hosts, const std::string& path, const Fit& fit) {
  const Lack& lack = fit.lacks.front();
  return FailedPrecondition("%s, the first host of %s, lacks %s: %s has to hold %s and can hold %s%s", hosts[0].name, path,
                            HumanBytes(lack.missing_bytes()), lack.where, HumanBytes(lack.needed_bytes),
                            HumanBytes(lack.had_bytes), RoomierHost(hosts, fit.host_needed_bytes));
}

// Of the experts that a token uses and slots do not hold, the share that host i computes.
double DecodeShare(const ClusterChoice& choice, size_t host) {
  const bool all_in_slots =
      std::all_of(choice.workers.begin(), choice.workers.end(), [](const ClusterWorker& worker) { return worker.holds_all; });
  const double all = all_in_slots ? 0 : choice.decode.host_expert_bytes;
  size_t number = 0;
  double others = 0;
  for (size_t i = 0; i < choice.engines.size(); ++i) {
    if (!choice.engines[i].used) continue;
    const double bytes = choice.decode.expert_host_bytes[number++];
    others += bytes;
    if (i + 1 == host) return all > 0 ? bytes / all : 0;
  }
  return host == 0 && all > 0 ? 1 - others / all : 0;
}

std::string SlotsText(const ClusterWorker& worker) {
  if (worker.holds_all) return "slots for all experts of its layers";
  return worker.slots == 0 ? "no slots" : absl::StrFormat("slots for %d experts", worker.slots);
}

void PrintWorkers(const ClusterPlan& plan, size_t host) {
  for (size_t w = 0; w < plan.taken.workers.size(); ++w) {
    const ClusterWorker& worker = plan.taken.workers[w];
    if (worker.host != host) continue;
    const LayerRange& layers = worker.placement.layers;
    const std::string device = worker.gpu >= 0 ? absl::StrFormat(" on GPU %d", worker.gpu) : " on its cores";
    std::printf("  worker %zu%s: layers %lld-%lld; dense %s, KV cache %s; %s\n", w, device.c_str(),
                static_cast<long long>(layers.first), static_cast<long long>(layers.end - 1),
                HumanBytes(worker.placement.dense_bytes).c_str(), HumanBytes(worker.placement.kv_bytes).c_str(),
                SlotsText(worker).c_str());
  }
}

// Why a host's workers, or its engine, are not in the taken choice.
void PrintLeftOut(const ClusterPlan& plan, size_t number) {
  const DescribedHost& host = plan.hosts[number];
  const bool could_work = !host.gpu_bytes.empty() || host.cpu_worker;
  if (could_work && !plan.HasWorkers(number)) {
    const std::string& why = plan.taken.left_out[number];
    std::printf("  %s left out: %s\n", host.gpu_bytes.empty() ? "a worker on its cores is" : "its GPUs are",
                why.empty() ? "another choice below is quicker" : why.c_str());
  }
  if (number > 0 && !plan.taken.engines[number - 1].used) {
    const std::string& why = plan.taken.engines[number - 1].why;
    std::printf("  its engine is left out: %s\n", why.empty() ? "another choice below is quicker" : why.c_str());
  }
}

void PrintHost(const ClusterPlan& plan, size_t number) {
  const DescribedHost& host = plan.hosts[number];
  const size_t gpus = host.gpu_bytes.size();
  std::printf("%s (%s, %s of memory%s)\n", host.name.c_str(), host.address.c_str(), HumanBytes(host.memory_bytes).c_str(),
              gpus == 0 ? "" : absl::StrFormat(", %d GPU%s", gpus, gpus == 1 ? "" : "s").c_str());
  PrintWorkers(plan, number);
  if (number == 0) {
    std::printf("  all experts, %s\n", HumanBytes(plan.model.arena().bytes()).c_str());
  } else if (const HostUse& use = plan.taken.engines[number - 1]; use.used) {
    std::printf("  engine: %lld of %lld expert records, %s\n", static_cast<long long>(use.records),
                static_cast<long long>(plan.model.arena().num_records()), HumanBytes(use.bytes).c_str());
  }
  if (const double share = DecodeShare(plan.taken, number); share >= kLeastShare) {
    std::printf("  computes %.0f %% of the experts that a token of decode finds in no slot\n", 100 * share);
  }
  PrintLeftOut(plan, number);
}

void PrintWhy(const ClusterPlan& plan) {
  std::printf(
      "why: the first host holds every record, and needs %s for that and for workers on its cores. An engine of another takes\n"
      "     part when decode is predicted to be faster by %.0f %% with it; each layer's experts are divided so that all end at "
      "the\n"
      "     same time\n",
      HumanBytes(plan.taken.fit.host_needed_bytes).c_str(), 100 * (kWorthAHost - 1));
  if (!plan.taken.UsesWorkersElsewhere()) return;
  std::printf(
      "     Workers of other hosts get records from the first one, or its engines compute for them: both cross the network, and\n"
      "     the coordinator divides by the rate of records alone, not by that of rows. It leaves no worker out by itself: it "
      "waits\n"
      "     for all %zu, and a slow one makes all slow. So type what is below for these workers and no others\n",
      plan.taken.workers.size());
  std::printf(plan.taken.layers.empty()
                  ? "     Layers are divided by bytes, as the coordinator does by itself\n"
                  : "     Layers are divided by --layers, which is predicted to be quicker than by bytes\n");
}

void PrintPredictions(const ClusterPlan& plan) {
  const ClusterChoice* const alone = plan.Alone();
  std::printf(
      "\npredicted; slots that do not hold all experts are empty at the start of a prompt (the first host alone in brackets):\n");
  for (size_t i = 0; i < plan.taken.prefills.size(); ++i) {
    const PrefillPrediction& prefill = plan.taken.prefills[i];
    std::printf("  prefill of %6lld tokens: %8.0f t/s", static_cast<long long>(prefill.tokens), prefill.tokens_per_second());
    std::printf(" (%s)",
                alone == nullptr ? "not possible" : absl::StrFormat("%.0f", alone->prefills[i].tokens_per_second()).c_str());
    if (prefill.step_rows < prefill.tokens) std::printf(", in steps of %lld", static_cast<long long>(prefill.step_rows));
    std::printf("\n");
  }
  std::printf("  decode: %.1f t/s (%s)\n", 1 / plan.taken.decode.seconds_per_token,
              alone == nullptr ? "not possible" : absl::StrFormat("%.1f", 1 / alone->decode.seconds_per_token).c_str());
}

void PrintChoices(const ClusterPlan& plan) {
  if (plan.choices.size() < 2) return;
  std::printf("\nchoices, by a prompt of %lld tokens and an answer of %lld:\n",
              static_cast<long long>(plan.taken.prefills.back().tokens), static_cast<long long>(kAnswerTokens));
  std::printf("| %-24s | %7s | %11s | %10s | %9s |\n", "choice", "workers", "prefill t/s", "decode t/s", "seconds");
  std::printf("|--------------------------|---------|-------------|------------|-----------|\n");
  for (const ClusterChoice& choice : plan.choices) {
    std::printf("| %-24s | %7zu |", choice.name.c_str(), choice.workers.size());
    if (!choice.fit.lacks.empty()) {
      const Lack& lack = choice.fit.lacks.front();
      std::printf(" %s lacks %s\n", lack.where.c_str(), HumanBytes(lack.missing_bytes()).c_str());
      continue;
    }
    std::printf(" %11.0f | %10.1f | %9.2f |%s\n", choice.prefills.back().tokens_per_second(), 1 / choice.decode.seconds_per_token,
                choice.seconds, &choice == &plan.taken ? " taken, as the quickest" : "");
  }
}

void PrintText(const ClusterPlan& plan) {
  for (size_t i = 0; i < plan.hosts.size(); ++i) PrintHost(plan, i);
  PrintWhy(plan);
  PrintPredictions(plan);
  PrintChoices(plan);
  std::printf("\ntype:\n");
  for (size_t i = 0; i < plan.hosts.size(); ++i) {
    for (const std::string& command : plan.commands[i]) std::printf("  on %s: %s\n", plan.hosts[i].name.c_str(), command.c_str());
  }
}

nlohmann::json HostJson(const ClusterPlan& plan, size_t number) {
  const HostUse first = {
      .used = true, .records = plan.model.arena().num_records(), .bytes = static_cast<int64_t>(plan.model.arena().bytes())};
  const HostUse& use = number > 0 ? plan.taken.engines[number - 1] : first;
  nlohmann::json workers = nlohmann::json::array();
  for (size_t w = 0; w < plan.taken.workers.size(); ++w) {
    const ClusterWorker& worker = plan.taken.workers[w];
    if (worker.host != number) continue;
    workers.push_back({{"worker_id", w},
                       {"device", worker.gpu >= 0 ? "cuda:" + std::to_string(worker.gpu) : "cpu"},
                       {"first_layer", worker.placement.layers.first},
                       {"last_layer", worker.placement.layers.end - 1},
                       {"dense_bytes", worker.placement.dense_bytes},
                       {"kv_bytes", worker.placement.kv_bytes},
                       {"slots", worker.slots}});
  }
  return {{"name", plan.hosts[number].name},
          {"used", use.used || !workers.empty()},
          {"engine", use.used},
          {"why_not", use.why},
          {"workers_why_not", plan.taken.left_out[number]},
          {"records", use.records},
          {"record_bytes", use.bytes},
          {"decode_share", use.used ? DecodeShare(plan.taken, number) : 0},
          {"workers", workers},
          {"commands", plan.commands[number]}};
}

nlohmann::json ChoicesJson(const ClusterPlan& plan) {
  nlohmann::json choices = nlohmann::json::array();
  for (const ClusterChoice& choice : plan.choices) {
    nlohmann::json one = {{"choice", choice.name},
                          {"workers", choice.workers.size()},
                          {"layers", choice.layers},
                          {"fits", choice.fit.lacks.empty()},
                          {"taken", &choice == &plan.taken}};
    if (choice.fit.lacks.empty()) {
      one["prefill_tokens_per_second"] = choice.prefills.back().tokens_per_second();
      one["decode_tokens_per_second"] = 1 / choice.decode.seconds_per_token;
      one["seconds"] = choice.seconds;
    }
    choices.push_back(std::move(one));
  }
  return choices;
}

void PrintJson(const ClusterPlan& plan) {
  const ClusterChoice* const alone = plan.Alone();
  nlohmann::json hosts = nlohmann::json::array(), prefills = nlohmann::json::array();
  for (size_t i = 0; i < plan.hosts.size(); ++i) hosts.push_back(HostJson(plan, i));
  for (size_t i = 0; i < plan.taken.prefills.size(); ++i) {
    const PrefillPrediction& prefill = plan.taken.prefills[i];
    prefills.push_back(
        {{"tokens", prefill.tokens}, {"tokens_per_second", prefill.tokens_per_second()}, {"step_rows", prefill.step_rows}});
    if (alone != nullptr) prefills.back()["first_host_alone"] = alone->prefills[i].tokens_per_second();
  }
  nlohmann::json result = {{"hosts", hosts},
                           {"needed_bytes", plan.taken.fit.host_needed_bytes},
                           {"prefill", prefills},
                           {"decode_tokens_per_second", 1 / plan.taken.decode.seconds_per_token},
                           {"layers", plan.taken.layers},
                           {"choices", ChoicesJson(plan)}};
  if (alone != nullptr) result["decode_first_host_alone"] = 1 / alone->decode.seconds_per_token;
  std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

absl::Status PlanHosts(const ModelOptions& given, const std::string& path, const std::vector<int64_t>& lengths, bool json) {
  ASSIGN_OR_RETURN(const std::vector<DescribedHost> hosts, ReadHosts(path));
  const ModelOptions options = OptionsOf(given, hosts[0]);
  ModelOptions whole = options;  // in one piece, which every choice divides anew
  whole.layers.clear();
  whole.overrides.clear();
  ASSIGN_OR_RETURN(const std::unique_ptr<PredictedModel> model, PredictedModel::Open(whole, 1, 0));
  ASSIGN_OR_RETURN(const std::vector<ClusterChoice> choices, ClusterChoicesOf(options, *model, hosts, lengths));
  const ClusterChoice* const taken = Quickest(choices);
  if (taken == nullptr) return NoRoom(hosts, path, choices.front().fit);
  const ClusterPlan plan = {
      .model = *model, .hosts = hosts, .choices = choices, .taken = *taken, .commands = ClusterCommands(options, hosts, *taken)};
  if (json) {
    PrintJson(plan);
  } else {
    PrintText(plan);
  }
  return absl::OkStatus();
}

}  // namespace ferry
