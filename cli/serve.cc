// `ferry serve`: a coordinator and its workers, supervised until Ctrl-C.

#include <cstdio>
#include <memory>
#include <optional>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/gateway_process.h"
#include "cli/interrupt.h"
#include "cli/service_manager.h"
#include "common/command_line.h"
#include "common/deadline.h"
#include "common/listen_address.h"
#include "common/log.h"

namespace ferry {
namespace {

// What the coordinator takes to end beside the drain: it tells the workers and closes its connections.
constexpr absl::Duration kEnding = absl::Seconds(10);

// Until `stop`, or until the coordinator ends. A service manager hears that all is alive while the coordinator answers.
absl::Status Attend(Supervisor& supervisor, const std::atomic<bool>& stop) {
  const ServiceManager manager;
  manager.Notify("READY=1\nSTATUS=the coordinator listens at " + supervisor.address());
  Deadline next_beat = Deadline::In(absl::ZeroDuration());
  while (!stop) {
    RETURN_IF_ERROR(supervisor.Health());
    if (next_beat.Passed() && supervisor.Silence() < manager.watchdog() / 2) {
      manager.Notify("WATCHDOG=1");
      next_beat = Deadline::In(manager.watchdog() / 4);
    }
    absl::SleepFor(absl::Milliseconds(100));
  }
  manager.Notify("STOPPING=1");
  return absl::OkStatus();
}

absl::Status Serve(ModelOptions options, const HttpOptions& http) {
  ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(options.listen, options.port));
  RETURN_IF_ERROR(options.CheckOutputs({http.chat_template_file}));
  options.listen = listen.host;
  options.port = listen.port;
  ASSIGN_OR_RETURN(const std::optional<GatewayProcess> gateway, GatewayOf(http, options));
  std::atomic<bool> stop{false};
  ASSIGN_OR_RETURN(const auto interrupt, InterruptHandler::Start([&] {
                     spdlog::info("draining: running requests may finish; Ctrl-C again ends at once");
                     stop = true;
                   }));
  ASSIGN_OR_RETURN(const std::unique_ptr<Supervisor> supervisor,
                   gateway ? StartWithGateway(options, *gateway) : Supervisor::Start(options));
  spdlog::info("coordinator at {}", supervisor->address());
  if (options.coordinator_only && options.cluster_listen.empty()) {
    spdlog::warn("only workers of this host can come: for those of other hosts, start with --cluster-listen ADDRESS");
  }
  RETURN_IF_ERROR(Attend(*supervisor, stop));
  return supervisor->Stop(absl::Seconds(options.drain_seconds) + kEnding);
}

}  // namespace

Command AddServe(CLI::App& app) {
  auto options = std::make_shared<ModelOptions>();
  options->port = kCoordinatorPort;
  options->log_level = "info";
  options->AddTo(app, /*model_required=*/true, /*serve=*/true);
  auto http = std::make_shared<HttpOptions>();
  const std::vector<CLI::Option*> flags = {
      AddInteger(app, "--http-port", http->port, {.max = 65535},
                 "port of HTTP, as OpenAI's and llama.cpp's clients ask; 0: none (default 8080)"),
      AddText(app, "--http-listen", http->listen, "ADDR or ADDR:PORT of HTTP; encrypted with --tls-cert (default 127.0.0.1)"),
      AddTexts(app, "--cors", http->origins,
               "origin of pages that may use HTTP from a browser, such as https://chat.example; * for all; may be given several "
               "times; default: none"),
      AddText(app, "--chat-template-file", http->chat_template_file,
              "Jinja template of conversations, in place of the model file's")};
  app.footer(Examples({"ferry serve -m model.gguf                        one worker per GPU, port 8090",
                       "ferry serve -m model.gguf --gpus 0,2 -c 32768    two GPUs, 32k tokens of context",
                       "ferry status                                     what runs where"}));
  return [options, http, flags] {
    for (const CLI::Option* const flag : flags) http->given = http->given || flag->count() > 0;
    return Serve(*options, *http);
  };
}

}  // namespace ferry
