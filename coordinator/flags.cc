#include "coordinator/flags.h"

#include "common/command_line.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/thread_pool.h"
#include "common/tls/cluster_ca.h"
#include "kernels/cpu/isa.h"

namespace ferry {
namespace {

constexpr double kMaxSeconds = 7 * 86400;
constexpr double kMaxHostRate = 1e18;  // of bytes or operations a second
constexpr int64_t kMaxTokens = int64_t{1} << 30, kMaxRows = 65536;

}  // namespace

void CoordinatorFlags::AddTo(CLI::App& app) {
  AddText(app, "-m,--model", options_.model, "GGUF file of the model (any file of a split one)")->required();
  AddText(app, "--alias", options_.alias, "the model's name in the API, in place of the one in its file");
  AddAddresses(app);
  AddPlacement(app);
  AddEngine(app);
  AddTimes(app);
  AddRates(app);
  AddText(app, "--trace", options_.trace, "file for a timeline of all steps, which ui.perfetto.dev opens; slows decode down");
  AddSwitch(app, "--force", options_.force, "replace the files of --trace and --port-file if they exist");
  AddChoice(app, "--log-level", options_.log_level, kLogLevels, "(default info)");
}

void CoordinatorFlags::AddAddresses(CLI::App& app) {
  AddText(app, "--listen", options_.listen,
          "HOST or HOST:PORT to serve on (default 127.0.0.1:8090); other than loopback must be said here; encrypted with "
          "--tls-cert");
  AddInteger(app, "--port", port_, {.max = 65535}, "port to serve on; 0: any free one (see --port-file)");
  AddText(app, "--tls-cert", options_.tls_cert, "PEM file of the API's certificate chain; a new one is in use within a minute");
  AddText(app, "--tls-key", options_.tls_key, "PEM file of its key");
  AddText(app, "--api-keys", options_.api_keys,
          "file of the keys that may use the API (`ferry api-key`); read again when it changes");
  AddSwitch(app, "--insecure", options_.insecure, "let anybody who reaches --listen use the API without a key");
  AddText(app, "--api-socket", options_.api_socket,
          "Unix socket of the API beside --listen, in a folder of mode 0700, for a ferry-gateway of this host; default: none");
  AddText(app, "--cluster-socket", options_.cluster_socket,
          "Unix socket where workers of this host come in, in a folder of mode 0700; default: in a folder of its own");
  AddInteger(app, "--cluster-data-port", options_.cluster_data_port, {.max = 65535},
             "port at which workers of other hosts make data connections for experts (default: any free one)");
  AddText(app, "--cluster-listen", options_.cluster_listen,
          "HOST or HOST:PORT where workers of other hosts come in, by certificates (port 8091); default: nowhere");
  options_.cluster_certs = DefaultClusterFolder();
  AddText(app, "--cluster-certs", options_.cluster_certs,
          "folder with the certificates that `ferry cluster-init` makes (default " + options_.cluster_certs + ")");
  AddText(app, "--port-file", options_.port_file, "write the port in use to this file");
}

void CoordinatorFlags::AddPlacement(CLI::App& app) {
  PlacementOptions& placement = options_.placement;
  const IntegerRange rows = {.max = kMaxRows, .automatic = 0, .units = true};
  AddInteger(app, "--workers", placement.num_workers, {.min = 1, .max = 64},
             "worker processes to wait for (default 1); each takes a range of layers");
  AddText(app, "--layers", placement.layers, "layer ranges of the workers, such as 0-9,10-23; default: even by bytes");
  AddTexts(app, "--override-tensor,--ot", placement.tensor_overrides,
           "REGEX=cpu|gpuN: where experts are computed; may be repeated, the first match wins");
  AddInteger(
      app, "-c,--ctx-size", placement.context_tokens, {.max = kMaxTokens, .automatic = 0, .units = true},
      "tokens of the KV cache, all requests together; default: min(model, 4096) for each of --parallel; with --gpu-memory the "
      "model's context, as far as a sixteenth of that memory goes");
  AddInteger(app, "-b,--batch-size", placement.batch_tokens, rows,
             "rows of one step; default: 2048, or with --gpu-memory up to 16384");
  AddInteger(app, "--gpu-memory", placement.gpu_bytes, {.max = int64_t{1} << 50},
             "bytes of the smallest GPU among the workers, by which -b is chosen; 0: they have none");
  AddInteger(app, "--ubatch-size,--ub", placement.micro_batch_tokens, rows,
             "rows of one dense or attention chunk, and of prompts in a step while others decode; default: 512, on GPUs up to "
             "4096 as memory allows");
  AddInteger(app, "--parallel,--np", placement.parallel, {.min = 1, .max = 256, .automatic = 4},
             "requests that run at once (default 4)");
  AddInteger(app, "--queue", options_.max_queued, {.max = 1 << 20},
             "requests that may wait (default 64); more are answered RESOURCE_EXHAUSTED");
  command_line::AddValue(
      app, "--cache-ram,--cram", "SIZE",
      "host memory that keeps the KV cache of earlier requests: 8GiB, a number of MiB, 0; default: a share of what is free",
      [this](const std::string& text) -> absl::Status {
        ASSIGN_OR_RETURN(options_.cache_ram_bytes, ParseCacheRam(text == "-1" ? "auto" : text));
        return absl::OkStatus();
      });
  AddChoice(app, "--cache-type-k,--ctk", key_type_, kKvTypes, "type of cached keys (default f16)");
  AddChoice(app, "--cache-type-v,--ctv", value_type_, kKvTypes, "type of cached values (default f16)");
}

void CoordinatorFlags::AddEngine(CLI::App& app) {
  AddSwitch(app, "--ooae,!--no-ooae", options_.ooae, "offload only activated experts (default); --no-ooae ships all of a layer");
  AddInteger(app, "-t,--threads", options_.threads, {.max = kMaxThreads, .automatic = 0},
             "threads of the expert engine; 0, the default: one a physical core");
  AddChoice(app, "--backend", options_.backend, {"cpu", "reference"}, "kernels of the expert engine (default cpu)");
  AddChoice(app, "--isa", options_.isa, IsaChoices(), "instruction set of the cpu kernels (default auto)");
  AddChoice(
      app, "--divide-experts", options_.divide_experts, {"auto", "even", "off"},
      "how experts are divided among this host and the expert hosts that join: auto, the default, by their rates; even, for "
      "tests, in turns; off: this host computes all");
  AddChoice(
      app, "--share-links", options_.share_links, {"auto", "even", "off"},
      "whether a worker with nothing else to do copies and computes experts for others of its host: auto, the default, where "
      "a layer gets faster by it; even, for tests, in turns; off");
  AddChoice(app, "--expert-transport", options_.expert_transport, {"auto", "shm", "tcp", "grpc"},
            "how experts reach workers that say auto (default auto)");
  AddInteger(app, "--steps-in-flight", options_.steps_in_flight, {.max = 1024, .automatic = 0},
             "independent steps under way at once; 0, the default: one a worker");
}

void CoordinatorFlags::AddTimes(CLI::App& app) {
  AddDecimal(app, "--heartbeat-interval", heartbeat_interval_, 1e-3, kMaxSeconds,
             "seconds between a worker's heartbeats (default 1)");
  AddDecimal(app, "--heartbeat-timeout", heartbeat_timeout_, 1e-3, kMaxSeconds,
             "seconds of silence after which a worker is lost (default 10)");
  AddDecimal(app, "--step-timeout", step_timeout_, 1e-3, kMaxSeconds, "seconds that one step may take (default 120)");
  AddDecimal(app, "--load-timeout", load_timeout_, 1e-3, kMaxSeconds,
             "seconds until all workers must be ready for the first time (default 1800)");
  AddDecimal(app, "--drain-timeout", drain_timeout_, 0, kMaxSeconds,
             "seconds that running requests get after SIGTERM or SIGINT (default 30)");
  AddChoice(app, "--resume", resume_, {"on", "off"},
            "whether requests go on when a worker is lost and another takes its place (default on)");
  AddDecimal(app, "--resume-patience", resume_patience_, 1e-3, kMaxSeconds,
             "seconds that requests wait for it before they end UNAVAILABLE (default 30)");
}

void CoordinatorFlags::AddRates(CLI::App& app) {
  AddDecimal(app, "--host-read-rate", options_.host_read_bytes_per_second, 0, kMaxHostRate,
             "bytes per second this host reads experts at; 0: measured at start");
  AddDecimal(app, "--host-flops", options_.host_flops_per_second, 0, kMaxHostRate,
             "floating point operations per second of its expert products; 0: measured at start");
  AddSwitch(app, "--keep-rates", options_.keep_rates,
            "keep this machine's rates for the next start although it was busy when they were measured");
  AddSwitch(app, "--probe", options_.probe, "measure this machine's rates anew instead of using what an earlier start kept");
}

absl::StatusOr<CoordinatorOptions> CoordinatorFlags::Options() const {
  CoordinatorOptions options = options_;
  ASSIGN_OR_RETURN(ListenAddress listen, ParseListenAddress(options.listen, kCoordinatorPort));
  if (port_ >= 0) listen.port = port_;
  options.listen = listen.ToString();
  ASSIGN_OR_RETURN(options.placement.key_type, ParseKvType("-ctk", key_type_));
  ASSIGN_OR_RETURN(options.placement.value_type, ParseKvType("-ctv", value_type_));
  options.heartbeat_interval = absl::Seconds(heartbeat_interval_);
  options.heartbeat_timeout = absl::Seconds(heartbeat_timeout_);
  options.step_timeout = absl::Seconds(step_timeout_);
  options.load_timeout = absl::Seconds(load_timeout_);
  options.drain_timeout = absl::Seconds(drain_timeout_);
  options.resume = resume_ == "on";
  options.resume_patience = absl::Seconds(resume_patience_);
  RETURN_IF_ERROR(CheckOptions(options));
  return options;
}

}  // namespace ferry
