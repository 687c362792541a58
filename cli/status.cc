// `ferry status`: what a running server does.

#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/predicted_model.h"
#include "common/command_line.h"
#include "common/program.h"

namespace ferry {
namespace {

struct StatusOptions {
  std::string server = "127.0.0.1:8090";
  bool live = false;
};

void Print(const proto::GetServerInfoResponse& info) {
  std::printf("%s, up %.0f s%s%s\n", info.state().c_str(), info.uptime_seconds(), info.state_reason().empty() ? "" : ": ",
              info.state_reason().c_str());
  std::printf("experts   %s in host memory (%s pages), loaded in %.1f s, %s\n", HumanBytes(info.arena_bytes()).c_str(),
              info.arena_huge_pages() ? "huge" : "ordinary", info.load_seconds(),
              HumanRate(info.load_bytes_per_second()).c_str());
  std::printf("host      %s; reads %s, int8 dot products %.0f Gop/s; this process %s\n", info.engine().c_str(),
              HumanRate(info.host_read_bytes_per_second()).c_str(), info.host_flops_per_second() / 1e9,
              HumanBytes(info.resident_bytes()).c_str());
  const FoundRates found = RatesOf(info);
  std::printf("rates     experts on the host %s and %.0f GFLOP/s, beside the links %s and %.0f; %s\n",
              HumanRate(found.rates.host.read_bytes_per_second).c_str(), found.rates.host.flops_per_second / 1e9,
              HumanRate(found.rates.host_beside_links.read_bytes_per_second).c_str(),
              found.rates.host_beside_links.flops_per_second / 1e9, found.source.c_str());
  std::printf("requests  %u running of %u, %u queued, %llu resumed; %llu prompt and %llu generated tokens so far\n",
              info.running_requests(), info.max_parallel(), info.queued_requests(),
              static_cast<unsigned long long>(info.resumed_requests_total()),
              static_cast<unsigned long long>(info.prompt_tokens_total()),
              static_cast<unsigned long long>(info.generated_tokens_total()));
  std::printf("KV cache  %u of %u blocks free\n", info.kv_blocks_free(), info.kv_blocks_total());
  for (const proto::WorkerInfo& worker : info.workers()) {
    std::printf("worker %u  %-8s layers %u-%u  %s\n", worker.worker_id(), worker.state().c_str(), worker.first_layer(),
                worker.end_layer() - 1, worker.device().c_str());
    std::printf("          dense %s, KV %s, %u expert slots of %s over %s", HumanBytes(worker.dense_bytes()).c_str(),
                HumanBytes(worker.kv_bytes()).c_str(), worker.expert_slots(), HumanBytes(worker.expert_slot_bytes()).c_str(),
                worker.expert_transport().c_str());
    if (worker.link_bytes_per_second() > 0) std::printf(", link %s alone", HumanRate(worker.link_bytes_per_second()).c_str());
    if (worker.link_together_bytes_per_second() > 0) {
      std::printf(", %s with the others, %s beside the host", HumanRate(worker.link_together_bytes_per_second()).c_str(),
                  HumanRate(worker.link_beside_host_bytes_per_second()).c_str());
    }
    if (worker.expert_flops_per_second() > 0) {
      std::printf("; experts at %.0f TFLOP/s, a small operation in %.1f us", worker.expert_flops_per_second() / 1e12,
                  worker.operation_seconds() * 1e6);
    }
    if (worker.message_seconds() > 0) std::printf("; a message and its answer in %.0f us", worker.message_seconds() * 1e6);
    std::printf("\n          %s\n", DescribeExperts(worker.experts()).c_str());
  }
}

absl::Status Status(const StatusOptions& options) {
  ASSIGN_OR_RETURN(const auto interrupt, InterruptHandler::Start([] { _exit(0); }));
  do {
    ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Attach(options.server));
    ASSIGN_OR_RETURN(const proto::GetServerInfoResponse info, client->ServerInfo());
    if (options.live) std::printf("\033[H\033[2J");
    Print(info);
    RETURN_IF_ERROR(FlushOutput());
    if (options.live) absl::SleepFor(absl::Seconds(1));
  } while (options.live);
  return absl::OkStatus();
}

}  // namespace

Command AddStatus(CLI::App& app) {
  auto options = std::make_shared<StatusOptions>();
  AddText(app, "--server", options->server, "address of the coordinator (default " + options->server + ")");
  AddSwitch(app, "--live", options->live, "refresh every second until Ctrl-C");
  return [options] { return Status(*options); };
}

}  // namespace ferry
