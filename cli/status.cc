// `ferry status`: what a running server does.

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/message_json.h"
#include "cli/predicted_model.h"
#include "common/command_line.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/program.h"

namespace ferry {
namespace {

constexpr absl::Duration kEvery = absl::Seconds(1);

struct StatusOptions {
  std::string server = "127.0.0.1:8090";
  bool live = false, json = false;
};

struct Look {
  Stopwatch age;
  proto::GetServerInfoResponse info;
  std::optional<proto::GetModelInfoResponse> model;  // nothing while it loads
};

absl::StatusOr<Look> LookAt(const std::string& server) {
  Look look;
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Attach(server));
  ASSIGN_OR_RETURN(look.info, client->ServerInfo());
  if (absl::StatusOr<proto::GetModelInfoResponse> model = client->ModelInfo(); model.ok()) look.model = *std::move(model);
  return look;
}

// Of the experts that were activated since `before`, or since the start, the share that was found in slots; nothing: none was.
std::optional<double> HitRate(const proto::GetServerInfoResponse& now, const proto::GetServerInfoResponse* before) {
  double activated = 0, resident = 0;
  const auto add = [&](const proto::GetServerInfoResponse& info, double sign) {
    for (const proto::WorkerInfo& worker : info.workers()) {
      activated += sign * static_cast<double>(worker.experts().activated());
      resident += sign * static_cast<double>(worker.experts().resident());
    }
  };
  add(now, 1);
  if (before != nullptr) add(*before, -1);
  if (activated <= 0) return std::nullopt;
  return resident / activated;
}

// The rates that steps have shown: those that were measured, divided by what the steps took longer. Empty: they have shown none.
std::string RatesInSteps(double read, double flops, double small_steps, double large_steps) {
  std::string text;
  for (const auto& [name, slowdown] : {std::pair("steps of up to 8 rows", small_steps), std::pair("larger steps", large_steps)}) {
    if (!(slowdown > 0)) continue;
    absl::StrAppendFormat(&text, "%s%s and %.0f GFLOP/s in %s", text.empty() ? "" : ", ", HumanRate(read / slowdown),
                          flops / slowdown / 1e9, name);
  }
  return text;
}

// "130, 410, 890 and 1020": the values in a unit.
template <typename Values>
std::string ListOf(const Values& values, double unit) {
  std::string text;
  for (size_t i = 0; i < values.size(); ++i) {
    const char* const before = i == 0 ? "" : i + 1 == values.size() ? " and " : ", ";
    absl::StrAppendFormat(&text, "%s%.0f", before, static_cast<double>(values[i]) / unit);
  }
  return text;
}

void AddServer(const std::string& server, const Look& look, std::string* text) {
  const proto::GetServerInfoResponse& info = look.info;
  absl::StrAppendFormat(text, "%s, up %.0f s%s%s\n", info.state(), info.uptime_seconds(), info.state_reason().empty() ? "" : ": ",
                        info.state_reason());
  if (look.model) {
    absl::StrAppendFormat(text, "model     %s: %s, %d layers, %d experts, context %d; Ferry %s at %s\n",
                          Escaped(look.model->name()), look.model->architecture(), look.model->num_layers(),
                          look.model->num_experts(), look.model->context_length(), info.version(), server);
  }
  absl::StrAppendFormat(text, "experts   %s in host memory (%s pages), loaded in %.1f s, %s\n", HumanBytes(info.arena_bytes()),
                        info.arena_huge_pages() ? "huge" : "ordinary", info.load_seconds(),
                        HumanRate(info.load_bytes_per_second()));
  absl::StrAppendFormat(text, "host      %s; reads %s, int8 dot products %.0f Gop/s; this process %s\n", info.engine(),
                        HumanRate(info.host_read_bytes_per_second()), info.host_flops_per_second() / 1e9,
                        HumanBytes(info.resident_bytes()));
  const FoundRates found = RatesOf(info);
  absl::StrAppendFormat(text, "rates     experts on the host %s and %.0f GFLOP/s, beside the links %s and %.0f; %s\n",
                        HumanRate(found.rates.host.read_bytes_per_second), found.rates.host.flops_per_second / 1e9,
                        HumanRate(found.rates.host_beside_links.read_bytes_per_second),
                        found.rates.host_beside_links.flops_per_second / 1e9, found.source);
  if (found.rates.host.flops_at_rows != ProductCurve{}) {
    absl::StrAppendFormat(text, "          with %s rows an expert %s GFLOP/s, beside the links %s\n", ListOf(kCurveRows, 1),
                          ListOf(found.rates.host.flops_at_rows, 1e9), ListOf(found.rates.host_beside_links.flops_at_rows, 1e9));
  }
  const std::string in_steps =
      RatesInSteps(found.rates.host_beside_links.read_bytes_per_second, found.rates.host_beside_links.flops_per_second,
                   info.host_experts().slowdown_of_small_steps(), info.host_experts().slowdown_of_large_steps());
  if (!in_steps.empty()) absl::StrAppendFormat(text, "          by the last steps, and so in plans: %s\n", in_steps);
}

// `before`: an earlier look; null: there is none.
void AddWork(const Look& look, const Look* before, std::string* text) {
  const proto::GetServerInfoResponse& info = look.info;
  absl::StrAppendFormat(
      text, "requests  %d running of %d, %d queued, %d resumed, %d suspended; %d prompt and %d generated tokens so far\n",
      info.running_requests(), info.max_parallel(), info.queued_requests(), info.resumed_requests_total(),
      info.suspended_requests_total(), info.prompt_tokens_total(), info.generated_tokens_total());
  const proto::PrefixCacheInfo& cache = info.prefix_cache();
  absl::StrAppendFormat(text, "KV cache  %d of %d blocks free, of these %d with tokens of earlier requests\n",
                        info.kv_blocks_free(), info.kv_blocks_total(), cache.blocks());
  absl::StrAppendFormat(text, "          %d of %d blocks of --cache-ram free; %d of %d tokens of prompts were found so far\n",
                        cache.host_blocks_free(), cache.host_blocks_total(), cache.found_tokens_total(),
                        cache.prompt_tokens_total());
  const std::optional<double> hits = HitRate(info, nullptr);
  if (hits) absl::StrAppendFormat(text, "slots     %.1f %% of the experts so far were found there", 100 * *hits);
  const bool restarted = before != nullptr && info.uptime_seconds() < before->info.uptime_seconds();
  if (before != nullptr && !restarted) {
    const double seconds = before->age.Seconds() - look.age.Seconds();
    const std::optional<double> now = HitRate(info, &before->info);
    if (now) absl::StrAppendFormat(text, ", %.1f %% in the last %.0f s", 100 * *now, seconds);
    const auto rate = [&](uint64_t later, uint64_t earlier) { return static_cast<double>(later - earlier) / seconds; };
    absl::StrAppendFormat(text, "%snow       %.1f tokens of prompts and %.1f generated ones a second", hits ? "\n" : "",
                          rate(info.prompt_tokens_total(), before->info.prompt_tokens_total()),
                          rate(info.generated_tokens_total(), before->info.generated_tokens_total()));
  }
  if (hits || (before != nullptr && !restarted)) *text += "\n";
}

void AddHiddenStates(const proto::HiddenStatesLink& link, std::string* text) {
  absl::StrAppendFormat(text, "          hidden states to the next worker by %s (%s)\n", link.way(), link.why());
  for (const proto::HiddenStatesTime& time : link.times()) {
    absl::StrAppendFormat(text, "            %d rows: %.0f us through shared memory, %.0f us over NCCL\n", time.rows(),
                          time.shm_seconds() * 1e6, time.nccl_seconds() * 1e6);
  }
}

void AddWorker(const proto::WorkerInfo& worker, std::string* text) {
  absl::StrAppendFormat(text, "worker %d  %-8s layers %d-%d  %s\n", worker.worker_id(), worker.state(), worker.first_layer(),
                        static_cast<int64_t>(worker.end_layer()) - 1, worker.device());
  absl::StrAppendFormat(text, "          dense %s, KV %s, ", HumanBytes(worker.dense_bytes()), HumanBytes(worker.kv_bytes()));
  if (worker.experts_in_place()) {
    *text += "experts computed where they lie in the host's memory";
  } else {
    absl::StrAppendFormat(text, "%d expert slots of %s over %s", worker.expert_slots(), HumanBytes(worker.expert_slot_bytes()),
                          worker.expert_transport());
  }
  if (worker.link_bytes_per_second() > 0)
    absl::StrAppendFormat(text, ", link %s alone", HumanRate(worker.link_bytes_per_second()));
  if (worker.link_together_bytes_per_second() > 0) {
    absl::StrAppendFormat(text, ", %s with the others, %s beside the host", HumanRate(worker.link_together_bytes_per_second()),
                          HumanRate(worker.link_beside_host_bytes_per_second()));
  }
  if (worker.link_slowdown() > 0) {
    absl::StrAppendFormat(text, ", %s in steps", HumanRate(RatesOf(worker).link.Planned() / worker.link_slowdown()));
  }
  if (worker.exchange_seconds() > 0) {
    absl::StrAppendFormat(text, "; rows to the host's engine and back in %.0f us", worker.exchange_seconds() * 1e6);
    if (worker.row_bytes_per_second() > 0) absl::StrAppendFormat(text, " and at %s", HumanRate(worker.row_bytes_per_second()));
  }
  if (worker.expert_flops_per_second() > 0) {
    absl::StrAppendFormat(text, "; experts at %.0f TFLOP/s, a small operation in %.1f us",
                          worker.expert_flops_per_second() / 1e12, worker.operation_seconds() * 1e6);
  }
  if (worker.message_seconds() > 0) {
    absl::StrAppendFormat(text, "; a message and its answer in %.0f us", worker.message_seconds() * 1e6);
  }
  absl::StrAppendFormat(text, "\n          %s\n", DescribeExperts(worker.experts()));
  if (!worker.hidden_states().way().empty()) AddHiddenStates(worker.hidden_states(), text);
}

void AddExpertHost(int number, const proto::ExpertHostInfo& host, std::string* text) {
  absl::StrAppendFormat(text, "experts %d %-13s %s at %s\n", number, host.state(), host.engine(), host.address());
  if (host.state() == "loading") {
    absl::StrAppendFormat(text, "          %.0f %% of its records\n", 100 * host.load_progress());
    return;
  }
  absl::StrAppendFormat(text, "          %d records, %s; reads %s and %.0f GFLOP/s\n", host.held_records(),
                        HumanBytes(host.held_bytes()), HumanRate(host.read_bytes_per_second()), host.flops_per_second() / 1e9);
  const std::string in_steps =
      RatesInSteps(host.read_bytes_per_second(), host.flops_per_second(), host.slowdown(), host.slowdown_of_large_steps());
  if (!in_steps.empty()) absl::StrAppendFormat(text, "          by the last steps, and so in plans: %s\n", in_steps);
  absl::StrAppendFormat(text, "          an exchange in %.0f us", host.exchange_seconds() * 1e6);
  if (host.exchange_slowdown() > 0) {
    absl::StrAppendFormat(text, ", %.0f in steps of up to 8 rows", host.exchange_seconds() * host.exchange_slowdown() * 1e6);
  }
  if (host.row_bytes_per_second() > 0) {
    absl::StrAppendFormat(text, "; rows at %s", HumanRate(host.row_bytes_per_second()));
    if (host.exchange_slowdown_of_large_steps() > 0) {
      absl::StrAppendFormat(text, ", %s in larger steps",
                            HumanRate(host.row_bytes_per_second() / host.exchange_slowdown_of_large_steps()));
    }
  }
  absl::StrAppendFormat(text, "; %d exchanges, %d rows through experts, %d failures%s\n", host.exchanges(), host.entries(),
                        host.failures(), host.last_failure().empty() ? "" : ", the last: " + host.last_failure());
}

// Over what the screen showed; as many lines as it has.
void Redraw(const std::string& text) {
  winsize size = {};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 && size.ws_col > 0;
  std::string drawn = "\033[H";
  int row = 1;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (known && row++ >= size.ws_row) break;
    absl::StrAppend(&drawn, known ? line.substr(0, size.ws_col) : line, "\033[K\r\n");
  }
  std::printf("%s\033[J", drawn.c_str());
}

absl::Status Status(const StatusOptions& options) {
  ASSIGN_OR_RETURN(const auto interrupt, InterruptHandler::Start([&options] {
                     if (options.live) _exit(0);  // what was printed is whole
                     ExitInterrupted();
                   }));
  const bool screen = options.live && isatty(STDOUT_FILENO) != 0;
  std::optional<Look> before;
  while (true) {
    ASSIGN_OR_RETURN(Look look, LookAt(options.server));
    if (options.json) {
      nlohmann::ordered_json json = {{"address", options.server}, {"server", JsonOf(look.info)}};
      json["model"] = look.model ? JsonOf(*look.model) : nlohmann::ordered_json();
      std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else {
      std::string text;
      AddServer(options.server, look, &text);
      AddWork(look, before ? &*before : nullptr, &text);
      for (const proto::WorkerInfo& worker : look.info.workers()) AddWorker(worker, &text);
      int number = 0;
      for (const proto::ExpertHostInfo& host : look.info.expert_hosts()) AddExpertHost(number++, host, &text);
      if (screen) {
        Redraw(text);
      } else {
        std::printf("%s%s", before ? "\n" : "", text.c_str());
      }
    }
    RETURN_IF_ERROR(FlushOutput());
    if (!options.live) return absl::OkStatus();
    before = std::move(look);
    absl::SleepFor(kEvery);
  }
}

}  // namespace

Command AddStatus(CLI::App& app) {
  auto options = std::make_shared<StatusOptions>();
  AddText(app, "--server", options->server, "address of the coordinator (default " + options->server + ")");
  AddSwitch(app, "--live", options->live, "look every second until Ctrl-C");
  AddSwitch(app, "--json", options->json,
            "print {\"address\", \"server\", \"model\"}, a line a look, with the fields of the API");
  app.footer(Examples({"ferry status --live", "ferry status --json | jq .server.generated_tokens_total"}));
  return [options] { return Status(*options); };
}

}  // namespace ferry
