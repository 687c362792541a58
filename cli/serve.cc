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

constexpr absl::Duration kDrain = absl::Seconds(30);

struct ServeOptions {
  ModelOptions model;
  double drain_seconds = absl::ToDoubleSeconds(kDrain);
};

absl::Status Serve(ServeOptions options) {
  ASSIGN_OR_RETURN(const ListenAddress listen, ParseListenAddress(options.model.listen, options.model.port));
  options.model.listen = listen.host;
  options.model.port = listen.port;
  std::atomic<bool> stop{false};
  InterruptHandler interrupt([&] {
    spdlog::info("draining: running requests may finish; Ctrl-C again ends at once");
    stop = true;
  });
  ASSIGN_OR_RETURN(const std::unique_ptr<Supervisor> supervisor, Supervisor::Start(options.model));
  spdlog::info("coordinator at {}", supervisor->address());
  if (options.model.coordinator_only && options.model.cluster_listen.empty()) {
    spdlog::warn("only workers of this host can come: for those of other hosts, start with --cluster-listen ADDRESS");
  }
  while (!stop) {
    RETURN_IF_ERROR(supervisor->Health());
    absl::SleepFor(absl::Milliseconds(100));
  }
  supervisor->Stop(absl::Seconds(options.drain_seconds));
  return absl::OkStatus();
}

}  // namespace

Command AddServe(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  options->model.port = kCoordinatorPort;
  options->model.log_level = "info";
  options->model.AddTo(app, /*model_required=*/true);
  app.add_option("--port", options->model.port, "port of the API; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--listen", options->model.listen,
                 "ADDR or ADDR:PORT of the API (0.0.0.0: every interface); connections are not encrypted")
      ->capture_default_str();
  app.add_flag(
      "--coordinator-only", options->model.coordinator_only,
      "start no workers here: they come from other hosts with `ferry-worker --coordinator ADDR`; --workers says how many");
  app.add_option("--tls-cert", options->model.tls_cert, "PEM file of the API's certificate chain");
  app.add_option("--tls-key", options->model.tls_key, "PEM file of its key");
  app.add_option("--api-keys", options->model.api_keys, "file of the keys that may use the API (`ferry api-key` makes them)");
  app.add_flag("--insecure", options->model.insecure, "let everybody who reaches --listen use the API without a key");
  app.add_option("--cluster-listen", options->model.cluster_listen,
                 "ADDR or ADDR:PORT where workers of other hosts come in, known by certificates (port 8091)");
  app.add_option("--cluster-certs", options->model.cluster_certs,
                 "folder with the certificates that `ferry cluster-init` makes (default: ~/.config/ferry/cluster)");
  app.add_option("--drain-seconds", options->drain_seconds, "how long running requests may go on after Ctrl-C")
      ->capture_default_str();
  app.footer(Examples({"ferry serve -m model.gguf                        one worker per GPU, port 8090",
                       "ferry serve -m model.gguf --gpus 0,2 -c 32768    two GPUs, 32k tokens of context",
                       "ferry status                                     what runs where"}));
  return [options] { return Serve(*options); };
}

}  // namespace ferry
