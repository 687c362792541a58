// `ferry serve`: a coordinator and its workers, supervised until Ctrl-C.

#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/supervisor.h"
#include "common/listen_address.h"
#include "common/log.h"

namespace ferry {
namespace {

// What the coordinator takes to end beside the drain: it tells the workers and closes its connections.
constexpr absl::Duration kEnding = absl::Seconds(10);

absl::Status Serve(ModelOptions options) {
  ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(options.listen, options.port));
  RETURN_IF_ERROR(options.CheckOutputs({}));
  options.listen = listen.host;
  options.port = listen.port;
  std::atomic<bool> stop{false};
  InterruptHandler interrupt([&] {
    spdlog::info("draining: running requests may finish; Ctrl-C again ends at once");
    stop = true;
  });
  ASSIGN_OR_RETURN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options));
  spdlog::info("coordinator at {}", supervisor->address());
  if (options.coordinator_only && options.cluster_listen.empty()) {
    spdlog::warn("only workers of this host can come: for those of other hosts, start with --cluster-listen ADDRESS");
  }
  while (!stop) {
    RETURN_IF_ERROR(supervisor->Health());
    absl::SleepFor(absl::Milliseconds(100));
  }
  return supervisor->Stop(absl::Seconds(options.drain_seconds) + kEnding);
}

}  // namespace

Command AddServe(CLI::App& app) {
  auto options = std::make_shared<ModelOptions>();
  options->port = kCoordinatorPort;
  options->log_level = "info";
  options->AddTo(app, /*model_required=*/true, /*serve=*/true);
  app.footer(Examples({"ferry serve -m model.gguf                        one worker per GPU, port 8090",
                       "ferry serve -m model.gguf --gpus 0,2 -c 32768    two GPUs, 32k tokens of context",
                       "ferry status                                     what runs where"}));
  return [options] { return Serve(*options); };
}

}  // namespace ferry
