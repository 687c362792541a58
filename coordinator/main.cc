// ferry-coordinator: flags into one Options struct, then Server. Ends with 0 after a drain, 1 on an error, 2 on wrong
// flags.

#include <pthread.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/rpc/acceptor.h"
#include "common/tls/cluster_ca.h"
#include "coordinator/options.h"
#include "coordinator/server.h"

namespace ferry {
namespace {

// llama.cpp's short flags of more than one letter, which CLI11 does not know.
std::vector<std::string> ExpandShortFlags(int argc, char** argv) {
  static const std::map<std::string, std::string> kLong = {{"-ub", "--ubatch-size"},
                                                           {"-np", "--parallel"},
                                                           {"-ot", "--override-tensor"},
                                                           {"-ctk", "--cache-type-k"},
                                                           {"-ctv", "--cache-type-v"}};
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    const auto found = kLong.find(argv[i]);
    arguments.push_back(found == kLong.end() ? argv[i] : found->second);
  }
  return arguments;
}

struct Flags {
  CoordinatorOptions options;
  int port = -1;
  double heartbeat_interval = 1, heartbeat_timeout = 10, step_timeout = 120, load_timeout = 1800, drain_timeout = 30;
  std::string key_type = "f16", value_type = "f16";
  bool no_ooae = false;
};

void AddFlags(CLI::App& app, Flags* flags) {
  CoordinatorOptions& options = flags->options;
  PlacementOptions& placement = options.placement;
  app.add_option("-m,--model", options.model, "GGUF file of the model (any file of a split one)")->required();
  app.add_option(
         "--listen", options.listen,
         "HOST or HOST:PORT to serve on; connections are not encrypted, so another address than loopback must be given here")
      ->capture_default_str();
  app.add_option("--port", flags->port, "port to serve on; 0: any free one (see --port-file)");
  app.add_option("--tls-cert", options.tls_cert, "PEM file of the API's certificate chain; a new one is in use within a minute");
  app.add_option("--tls-key", options.tls_key, "PEM file of its key");
  app.add_option("--api-keys", options.api_keys,
                 "file of the keys that may use the API (`ferry api-key`); read again when it changes");
  app.add_flag("--insecure", options.insecure, "let everybody who reaches --listen use the API without a key");
  app.add_option("--cluster-socket", options.cluster_socket,
                 "Unix socket where workers of this host come in, in a folder of mode 0700; default: in a folder of its own");
  app.add_option("--cluster-listen", options.cluster_listen,
                 "HOST or HOST:PORT where workers of other hosts come in, by certificates (port 8091); default: nowhere");
  app.add_option("--cluster-certs", options.cluster_certs, "folder with the certificates that `ferry cluster-init` makes")
      ->capture_default_str();
  app.add_option("--port-file", options.port_file, "write the port in use to this file");
  app.add_option("--workers", placement.num_workers, "worker processes to wait for; each takes a range of layers")
      ->capture_default_str();
  app.add_option("--layers", placement.layers, "layer ranges of the workers, such as 0-9,10-23; default: even by bytes");
  app.add_option("--override-tensor", placement.tensor_overrides,
                 "-ot REGEX=cpu|gpuN: where experts are computed; may be repeated, the first match wins");
  app.add_option("-c,--ctx-size", placement.context_tokens,
                 "tokens of the KV cache, all requests together; default: min(model, 4096) for each of --parallel");
  app.add_option("-b,--batch-size", placement.batch_tokens, "rows of one step; default: 2048, or with --gpu-memory up to 16384");
  app.add_option("--gpu-memory", placement.gpu_bytes,
                 "bytes of the smallest GPU among the workers, for the defaults of -b and -ub; 0: no GPUs")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
      "--ubatch-size", placement.micro_batch_tokens,
      "-ub: rows of one dense or attention chunk, and of prompts in a step while others decode; default: 512, on GPUs up to "
      "4096 as memory allows");
  app.add_option("--parallel", placement.parallel, "-np: requests that run at once")->capture_default_str();
  app.add_option("--queue", options.max_queued, "requests that may wait; further ones get RESOURCE_EXHAUSTED")
      ->capture_default_str();
  app.add_option("--cache-type-k", flags->key_type, "-ctk: type of cached keys, f16 or q8_0")->capture_default_str();
  app.add_option("--cache-type-v", flags->value_type, "-ctv: type of cached values, f16 or q8_0")->capture_default_str();
  app.add_flag("--ooae,!--no-ooae", options.ooae, "offload only activated experts (default); --no-ooae ships all of a layer");
  app.add_option("-t,--threads", options.threads, "threads of the expert engine; 0: one a physical core")->capture_default_str();
  app.add_option("--backend", options.backend, "kernels of the expert engine: cpu or reference")->capture_default_str();
  app.add_option("--isa", options.isa, "instruction set of the cpu kernels: auto, avx512, avx2, portable")->capture_default_str();
  app.add_option("--expert-transport", options.expert_transport,
                 "how workers with --expert-transport=auto reach experts: auto, shm or grpc")
      ->capture_default_str();
  app.add_option("--steps-in-flight", options.steps_in_flight, "independent steps in flight; 0: one for each worker")
      ->capture_default_str();
  app.add_option("--heartbeat-interval", flags->heartbeat_interval, "seconds between a worker's heartbeats")
      ->capture_default_str();
  app.add_option("--heartbeat-timeout", flags->heartbeat_timeout, "seconds of silence after which a worker is lost")
      ->capture_default_str();
  app.add_option("--step-timeout", flags->step_timeout, "seconds that one step may take")->capture_default_str();
  app.add_option("--load-timeout", flags->load_timeout, "seconds until all workers must be ready for the first time")
      ->capture_default_str();
  app.add_option("--drain-timeout", flags->drain_timeout, "seconds that running requests get after SIGTERM or SIGINT")
      ->capture_default_str();
  app.add_option("--host-read-rate", options.host_read_bytes_per_second,
                 "bytes per second at which this host reads experts; 0: measured at start");
  app.add_option("--host-flops", options.host_flops_per_second,
                 "floating point operations per second of its expert products; 0: measured at start");
  app.add_option("--trace", options.trace,
                 "write a timeline of all steps to this file, which ui.perfetto.dev opens; slows decode down");
  app.add_flag("--probe", options.probe, "measure this machine's rates again instead of using those of an earlier start");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error, off")->capture_default_str();
}

absl::StatusOr<DType> CacheType(const char* flag, const std::string& name) {
  if (name == "f16") return DType::kF16;
  if (name == "q8_0") return DType::kQ8_0;
  if (name == "f32") return DType::kF32;
  return InvalidArgument("%s is '%s', want f16, q8_0 or, for the reference kernels, f32", flag, name);
}

absl::StatusOr<CoordinatorOptions> OptionsOf(const Flags& flags) {
  CoordinatorOptions options = flags.options;
  ASSIGN_OR_RETURN(ListenAddress listen, ParseListenAddress(options.listen, kCoordinatorPort));
  if (flags.port > 65535) return InvalidArgument("--port is %d, want 0 to 65535", flags.port);
  if (flags.port >= 0) listen.port = flags.port;
  options.listen = listen.ToString();
  ASSIGN_OR_RETURN(options.placement.key_type, CacheType("-ctk", flags.key_type));
  ASSIGN_OR_RETURN(options.placement.value_type, CacheType("-ctv", flags.value_type));
  options.heartbeat_interval = absl::Seconds(flags.heartbeat_interval);
  options.heartbeat_timeout = absl::Seconds(flags.heartbeat_timeout);
  options.step_timeout = absl::Seconds(flags.step_timeout);
  options.load_timeout = absl::Seconds(flags.load_timeout);
  options.drain_timeout = absl::Seconds(flags.drain_timeout);
  RETURN_IF_ERROR(CheckOptions(options));
  return options;
}

// A process that waits for the file sees all of it or none.
absl::Status WritePortFile(const std::string& path, int port) {
  const std::string temporary = path + ".new";
  std::ofstream(temporary) << port << '\n';
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) return FailedPrecondition("cannot write --port-file %s: %s", path, error.message());
  return absl::OkStatus();
}

// SIGTERM and SIGINT, blocked everywhere and taken by one thread: the first asks for a drain, the second ends the
// process.
class StopSignal {
 public:
  // Before any other thread exists: threads inherit the mask.
  StopSignal() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    std::thread([this, asked = std::move(promise_)]() mutable {
      int signal = 0;
      sigwait(&signals_, &signal);
      asked.set_value();
      sigwait(&signals_, &signal);
      std::_Exit(128 + signal);
    }).detach();
  }
  bool WaitFor(std::chrono::milliseconds duration) { return asked_.wait_for(duration) == std::future_status::ready; }

 private:
  sigset_t signals_;
  std::promise<void> promise_;
  std::future<void> asked_ = promise_.get_future();
};

int Fail(const absl::Status& status) {
  spdlog::error("{}", status.ToString());
  return 1;
}

int Run(const CoordinatorOptions& options) {
  using namespace std::chrono_literals;
  static StopSignal stop;  // its thread outlives this function
  RaiseDescriptorLimit();
  absl::StatusOr<std::unique_ptr<Server>> started = Server::Start(options);
  if (!started.ok()) return Fail(started.status());
  Server& server = **started;
  spdlog::info("listening on {}, not serving yet; workers of this host: --coordinator {}", server.address(),
               server.cluster_address());
  if (!options.port_file.empty()) {
    if (const absl::Status status = WritePortFile(options.port_file, server.port()); !status.ok()) return Fail(status);
  }

  const absl::Time deadline = Clock::Real()->Now() + options.load_timeout;
  std::future<absl::Status> loading = std::async(std::launch::async, [&] { return server.Load(); });
  while (loading.wait_for(0ms) != std::future_status::ready) {
    // Nobody is served and no worker is here: there is nothing to bring to an end, and reading cannot be interrupted.
    if (stop.WaitFor(50ms)) std::_Exit(0);
  }
  if (const absl::Status status = loading.get(); !status.ok()) return Fail(status);

  bool serving = false;
  while (!stop.WaitFor(serving ? 1000ms : 0ms)) {
    if (serving) continue;
    serving = server.WaitUntilServing(Clock::Real()->Now() + absl::Milliseconds(100)).ok();
    if (serving) {
      spdlog::info("serving on {}", server.address());
    } else if (Clock::Real()->Now() >= deadline) {
      return Fail(server.WaitUntilServing(deadline));
    }
  }
  spdlog::info("asked to stop");
  server.Drain();
  spdlog::info("ended");
  return 0;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  CLI::App app{
      "ferry-coordinator: owns the model, its experts and the API of a Ferry cluster. Usually started by `ferry "
      "serve`."};
  ferry::Flags flags;
  flags.options.cluster_certs = ferry::DefaultClusterFolder();
  ferry::AddFlags(app, &flags);
  std::vector<std::string> arguments = ferry::ExpandShortFlags(argc, argv);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  ferry::InitLog("coordinator", flags.options.log_level);
  const absl::StatusOr<ferry::CoordinatorOptions> options = ferry::OptionsOf(flags);
  if (!options.ok()) {
    std::cerr << "ferry-coordinator: " << options.status().message() << '\n';
    return 2;
  }
  return ferry::Run(*options);
}
