// `ferry generate`: continues a prompt; the completion goes to standard output as it comes.

#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/prompt.h"
#include "cli/sampling_options.h"
#include "common/command_line.h"
#include "common/deadline.h"
#include "common/program.h"

namespace ferry {
namespace {

constexpr absl::Duration kReportPatience = absl::Seconds(3);  // heartbeats come every second

struct GenerateOptions {
  ModelOptions model;
  PromptOptions prompt;
  SamplingOptions sampling;
  std::string server;
  bool show_experts = false;
  bool special = false, no_special = false;
};

void ShowWorkers(Client& client, const proto::Finish& finish) {
  std::fprintf(stderr, "%s\n", DescribeExperts(finish.experts()).c_str());
  // Workers report with their heartbeats: wait until the last steps are in.
  absl::StatusOr<proto::GetServerInfoResponse> info = client.ServerInfo();
  const Deadline deadline = Deadline::In(kReportPatience);
  while (info.ok() && !deadline.Passed()) {
    uint64_t reported = 0;
    for (const proto::WorkerInfo& worker : info->workers()) reported += worker.experts().activated();
    if (reported >= finish.experts().activated()) break;
    absl::SleepFor(absl::Milliseconds(50));
    info = client.ServerInfo();
  }
  if (!info.ok()) return;
  for (const proto::WorkerInfo& worker : info->workers()) {
    const proto::ExpertCounters& experts = worker.experts();
    std::fprintf(stderr, "  worker %u, layers %u-%u, %s over %s: %llu resident, %llu shipped, %llu on the host\n",
                 worker.worker_id(), worker.first_layer(), worker.end_layer() - 1, worker.device().c_str(),
                 worker.expert_transport().c_str(), static_cast<unsigned long long>(experts.resident()),
                 static_cast<unsigned long long>(experts.shipped()), static_cast<unsigned long long>(experts.on_host()));
  }
}

double Rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

absl::Status Generate(const GenerateOptions& options) {
  proto::GenerateRequest request;
  RETURN_IF_ERROR(options.model.CheckOutputs({options.prompt.file.value_or(""), options.prompt.ids_file.value_or("")}));
  RETURN_IF_ERROR(options.prompt.Fill(request));
  RETURN_IF_ERROR(options.sampling.Fill(request));
  if (options.special) request.set_render_special(true);
  if (options.no_special) request.set_parse_special(false);

  std::mutex mutex;
  Client* running = nullptr;
  ASSIGN_OR_RETURN(const auto interrupt, InterruptHandler::Start([&] {
                     const std::lock_guard lock(mutex);
                     if (running == nullptr) ExitInterrupted();  // still loading
                     running->Cancel();
                   }));
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect(options.server, options.model));
  {
    const std::lock_guard lock(mutex);
    running = client.get();
  }
  bool printed = false;
  const absl::StatusOr<proto::Finish> finish = client->Generate(request, [&](const proto::GenerateResponse& response) {
    std::fwrite(response.text().data(), 1, response.text().size(), stdout);
    printed = printed || !response.text().empty();
    return FlushOutput().ok();  // a reader that has gone reads nothing else
  });
  {
    const std::lock_guard lock(mutex);
    running = nullptr;
  }
  if (finish.ok() || printed) std::fputc('\n', stdout);
  RETURN_IF_ERROR(FlushOutput());
  RETURN_IF_ERROR(finish.status());
  const uint32_t computed = finish->prompt_tokens() - finish->cached_prompt_tokens();
  std::fprintf(stderr, "\nprompt %u tokens (%u cached) in %.3f s, %.1f t/s; generated %u in %.3f s, %.1f t/s; seed %llu\n",
               finish->prompt_tokens(), finish->cached_prompt_tokens(), finish->prefill_seconds(),
               Rate(computed, finish->prefill_seconds()), finish->generated_tokens(), finish->decode_seconds(),
               Rate(finish->generated_tokens() > 0 ? finish->generated_tokens() - 1 : 0, finish->decode_seconds()),
               static_cast<unsigned long long>(finish->seed()));
  if (options.show_experts) ShowWorkers(*client, *finish);
  return client->Close();
}

}  // namespace

Command AddGenerate(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  options->model.AddWithServer(app, options->server, "use the coordinator at this address instead of starting one");
  options->prompt.AddTo(app);
  options->sampling.AddTo(app);
  AddSwitch(app, "--show-experts", options->show_experts, "print at the end where experts were computed");
  AddSwitch(app, "--special", options->special, "show special tokens");
  AddSwitch(app, "--no-parse-special", options->no_special, "read special tokens in the prompt as plain text");
  app.footer(Examples({"ferry generate -m model.gguf -p \"Once upon a time\" -n 100 --temp 0.8",
                       "ferry generate --server 127.0.0.1:8090 -f question.txt"}));
  return [options]() -> absl::Status {
    if (options->server.empty() == options->model.model.empty())
      return InvalidArgument("give -m FILE, or --server ADDR of a running coordinator");
    return Generate(*options);
  };
}

}  // namespace ferry
