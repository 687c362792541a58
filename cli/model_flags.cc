#include "cli/model_flags.h"

#include "common/byte_size.h"
#include "common/command_line.h"
#include "common/log.h"
#include "common/thread_pool.h"
#include "coordinator/options.h"
#include "kernels/cpu/isa.h"

namespace ferry {
namespace {

constexpr char kNoGroup[] = "", kWhere[] = "What runs where", kSizes[] = "Sizes", kHow[] = "How", kServer[] = "Server";
constexpr int64_t kMaxTokens = int64_t{1} << 30;
constexpr double kMaxSeconds = 7 * 86400;

// Which process is told.
struct To {
  const char* flag = nullptr;
  bool coordinator = false, worker = false;
};
To Here() { return {}; }
To Coordinator(const char* flag) { return {flag, true, false}; }
To Worker(const char* flag) { return {flag, false, true}; }
To Both(const char* flag) { return {flag, true, true}; }

ModelFlag FlagRow(const char* names, const char* group, To to, std::function<CLI::Option*(CLI::App&, ModelOptions&)> add,
                  std::function<std::vector<std::string>(const ModelOptions&)> values) {
  return {.names = names,
          .group = group,
          .serve_only = false,
          .told = to.flag,
          .coordinator = to.coordinator,
          .worker = to.worker,
          .add = std::move(add),
          .values = std::move(values)};
}

ModelFlag ServeOnly(ModelFlag flag) {
  flag.serve_only = true;
  return flag;
}

std::string WithDefault(const std::string& help, const std::string& value) { return help + " (default " + value + ")"; }

// The child is told every value but `unset`, which leaves the child its own default.
template <typename T>
ModelFlag Integer(const char* names, const char* group, To to, T ModelOptions::*field, IntegerRange range, const char* help,
                  T unset = 0) {
  return FlagRow(
      names, group, to, [=](CLI::App& app, ModelOptions& options) { return AddInteger(app, names, options.*field, range, help); },
      [=](const ModelOptions& options) -> std::vector<std::string> {
        if (options.*field == unset) return {};
        return {std::to_string(options.*field)};
      });
}

ModelFlag Seconds(const char* names, const char* group, To to, double ModelOptions::*field, double min, const char* help,
                  double unset) {
  return FlagRow(
      names, group, to,
      [=](CLI::App& app, ModelOptions& options) { return AddDecimal(app, names, options.*field, min, kMaxSeconds, help); },
      [=](const ModelOptions& options) -> std::vector<std::string> {
        if (options.*field == unset) return {};
        return {absl::StrFormat("%.17g", options.*field)};
      });
}

ModelFlag Text(const char* names, const char* group, To to, std::string ModelOptions::*field, const char* help) {
  return FlagRow(
      names, group, to, [=](CLI::App& app, ModelOptions& options) { return AddText(app, names, options.*field, help); },
      [=](const ModelOptions& options) -> std::vector<std::string> {
        if ((options.*field).empty()) return {};
        return {options.*field};
      });
}

ModelFlag OneOf(const char* names, const char* group, To to, std::string ModelOptions::*field,
                const std::vector<const char*>& choices, const char* help) {
  return FlagRow(
      names, group, to,
      [=](CLI::App& app, ModelOptions& options) {
        return AddChoice(app, names, options.*field, choices, WithDefault(help, options.*field));
      },
      [=](const ModelOptions& options) { return std::vector<std::string>{options.*field}; });
}

ModelFlag Switch(const char* names, const char* group, To to, bool ModelOptions::*field, bool told_when, const char* help) {
  ModelFlag flag = FlagRow(
      names, group, to, [=](CLI::App& app, ModelOptions& options) { return AddSwitch(app, names, options.*field, help); },
      [=](const ModelOptions& options) -> std::vector<std::string> {
        if (options.*field != told_when) return {};
        return {""};
      });
  flag.is_switch = true;
  return flag;
}

CLI::Option* AddVramExperts(CLI::App& app, ModelOptions& options) {
  return command_line::AddValue(app, "--vram-experts", "SIZE",
                                "memory of a worker that holds experts: 4GiB, auto, 0 (default: auto on GPUs)",
                                [&options](const std::string& text) -> absl::Status {
                                  options.vram_experts = text == "-1" ? "auto" : text;
                                  return options.vram_experts == "auto" ? absl::OkStatus() : ParseByteSize(text).status();
                                });
}

CLI::Option* AddCacheRam(CLI::App& app, ModelOptions& options) {
  return command_line::AddValue(app, "--cache-ram,--cram", "SIZE",
                                "host memory that keeps the KV cache of earlier requests: 8GiB, a number of MiB, 0 for none\n"
                                "(default: a quarter of the memory that the experts leave, at most 8GiB)",
                                [&options](const std::string& text) -> absl::Status {
                                  options.cache_ram = text == "-1" ? "auto" : text;
                                  return ParseCacheRam(options.cache_ram).status();
                                });
}

std::vector<ModelFlag> ServerTable() {
  using M = ModelOptions;
  return {
      ServeOnly(Integer("--port", kServer, Here(), &M::port, {.min = 0, .max = 65535}, "port of the API; 0: any free one", -1)),
      ServeOnly(Text("--listen", kServer, Here(), &M::listen,
                     "ADDR or ADDR:PORT of the API (0.0.0.0: every interface); encrypted with --tls-cert")),
      ServeOnly(Text("-a,--alias", kServer, Coordinator("--alias"), &M::alias,
                     "the model's name in the API, in place of the one in its file")),
      ServeOnly(Switch("--coordinator-only", kServer, Here(), &M::coordinator_only, /*told_when=*/true,
                       "start no workers here: they come from other hosts with `ferry-worker --coordinator ADDR`; --workers "
                       "says how many")),
      ServeOnly(Text("--tls-cert", kServer, Coordinator("--tls-cert"), &M::tls_cert, "PEM file of the API's certificate chain")),
      ServeOnly(Text("--tls-key", kServer, Coordinator("--tls-key"), &M::tls_key, "PEM file of its key")),
      ServeOnly(Text("--api-keys", kServer, Coordinator("--api-keys"), &M::api_keys,
                     "file of the keys that may use the API (`ferry api-key` makes them)")),
      ServeOnly(Switch("--insecure", kServer, Coordinator("--insecure"), &M::insecure, /*told_when=*/true,
                       "let anybody who reaches --listen use the API without a key")),
      ServeOnly(Text("--cluster-listen", kServer, Coordinator("--cluster-listen"), &M::cluster_listen,
                     "ADDR or ADDR:PORT where workers of other hosts come in, known by certificates (port 8091)")),
      ServeOnly(Integer("--cluster-data-port", kServer, Coordinator("--cluster-data-port"), &M::cluster_data_port,
                        {.min = 0, .max = 65535}, "port there for the experts' own connections (default: any free one)", 0)),
      ServeOnly(Text("--cluster-certs", kServer, Coordinator("--cluster-certs"), &M::cluster_certs,
                     "folder with the certificates that `ferry cluster-init` makes (default: ~/.config/ferry/cluster)")),
      ServeOnly(OneOf("--divide-experts", kServer, Coordinator("--divide-experts"), &M::divide_experts, {"auto", "even", "off"},
                      "among this host and the expert hosts that join: by their rates; in turns, for tests; not at all")),
      ServeOnly(OneOf("--resume", kServer, Coordinator("--resume"), &M::resume, {"on", "off"},
                      "whether requests wait when a worker is lost, and go on with the next one")),
      ServeOnly(Seconds("--resume-patience", kServer, Coordinator("--resume-patience"), &M::resume_patience, 1e-3,
                        "seconds that they wait before they end UNAVAILABLE (default 30)", /*unset=*/0)),
      ServeOnly(Seconds("--drain-seconds", kServer, Coordinator("--drain-timeout"), &M::drain_seconds, 0,
                        "how long running requests may go on after Ctrl-C (default 30)", /*unset=*/-1)),
  };
}

std::vector<ModelFlag> ModelTable() {
  const IntegerRange tokens = {.min = 0, .max = kMaxTokens, .automatic = 0, .units = true};
  const IntegerRange rows = {.min = 0, .max = 65536, .automatic = 0, .units = true};
  using M = ModelOptions;
  return {
      Text("-m,--model", kNoGroup, Coordinator("--model"), &M::model, "GGUF file of the model, or any file of a split model"),
      Integer("--workers", kWhere, Here(), &M::workers, {.min = 1, .max = 64, .automatic = 0},
              "worker processes; default: one per GPU, or one on a machine without GPUs"),
      Text("--gpus", kWhere, Here(), &M::gpus, "GPUs to use, one worker each: 0,1,3"),
      Text("--layers", kWhere, Coordinator("--layers"), &M::layers, "layers of each worker: 0-9,10-23 (default: even by bytes)"),
      FlagRow(
          "--override-tensor,--ot", kWhere, Coordinator("--override-tensor"),
          [](CLI::App& app, ModelOptions& options) {
            return AddTexts(app, "--override-tensor,--ot", options.overrides,
                            "REGEX=cpu or REGEX=gpuN: where the experts that match are computed");
          },
          [](const ModelOptions& options) { return options.overrides; }),
      FlagRow("--vram-experts", kWhere, Worker("--vram-experts"), AddVramExperts,
              [](const ModelOptions& options) -> std::vector<std::string> {
                if (options.vram_experts.empty()) return {};
                return {options.vram_experts};
              }),
      OneOf("--unified", kWhere, Worker("--unified"), &M::unified, {"auto", "on", "off"},
            "compute experts where they lie in the host's memory, without slots; auto: where a GPU's memory is the host's"),
      Switch("--ooae,!--no-ooae", kWhere, Coordinator("--no-ooae"), &M::ooae, /*told_when=*/false,
             "ferry only the experts that a batch activates (default), or all of a layer"),
      OneOf("--share-links", kWhere, Coordinator("--share-links"), &M::share_links, {"auto", "even", "off"},
            "whether a GPU with nothing else to do copies and computes experts for the others of this host: where a prompt gets "
            "faster by it; in turns, for tests; never"),
      OneOf("--expert-transport", kWhere, Both("--expert-transport"), &M::expert_transport, {"auto", "shm", "tcp", "grpc"},
            "how experts reach the workers; auto: by shared memory on this host, over connections of their own from others"),
      OneOf("--transport", kWhere, Worker("--transport"), &M::transport, {"auto", "shm", "tcp", "nccl", "grpc"},
            "how hidden states go from worker to worker; auto: the fastest way, measured between GPUs and between hosts"),
      Text("--nccl-library", kWhere, Worker("--nccl-library"), &M::nccl_library,
           "file of NCCL 2.18 or later (default: libnccl.so.2 of the system)"),
      Text("--nccl-interface", kWhere, Worker("--nccl-interface"), &M::nccl_interface,
           "network interface for NCCL between hosts, which encrypts nothing (default: none, NCCL stays within a host)"),
      Integer("-c,--ctx-size", kSizes, Coordinator("--ctx-size"), &M::context, tokens,
              "tokens in the KV cache, all requests together (default: 4096 per request; on GPUs the\n"
              "model's context, as far as a sixteenth of their memory goes)"),
      Integer("-b,--batch-size", kSizes, Coordinator("--batch-size"), &M::batch, rows,
              "tokens that go through the model in one step; on GPUs each expert is moved once a step\n"
              "(default: 2048 on CPUs; on GPUs up to 16384, as their memory allows)"),
      Integer("--ubatch-size,--ub", kSizes, Coordinator("--ubatch-size"), &M::micro_batch, rows,
              "tokens of one attention chunk inside a step (default: 512, on GPUs up to 4096\nas their memory allows)"),
      Integer("--parallel,--np", kSizes, Coordinator("--parallel"), &M::parallel, {.min = 1, .max = 256, .automatic = 4},
              "requests at once (default 4)", /*unset=*/-1),
      FlagRow("--cache-ram,--cram", kSizes, Coordinator("--cache-ram"), AddCacheRam,
              [](const ModelOptions& options) -> std::vector<std::string> {
                if (options.cache_ram == "auto") return {};
                return {options.cache_ram};
              }),
      OneOf("--cache-type-k,--ctk", kSizes, Coordinator("--cache-type-k"), &M::key_type, kKvTypes, "type of the KV cache's keys"),
      OneOf("--cache-type-v,--ctv", kSizes, Coordinator("--cache-type-v"), &M::value_type, kKvTypes, "type of its values"),
      Integer("-t,--threads", kHow, Both("--threads"), &M::threads, {.min = 0, .max = kMaxThreads, .automatic = 0},
              "threads of each process (default: physical cores)"),
      OneOf("--backend", kHow, Here(), &M::backend, {"auto", "cpu", "cuda", "reference"}, "kernels of the workers"),
      OneOf("--isa", kHow, Both("--isa"), &M::isa, IsaChoices(), "instruction set of the CPU kernels"),
      Seconds("--step-timeout", kHow, Coordinator("--step-timeout"), &M::step_timeout, 1e-3,
              "seconds after which a step that does not end fails its requests (default 120)", /*unset=*/0),
      Text("--trace", kHow, Coordinator("--trace"), &M::trace,
           "file for a timeline of every step on every queue, which ui.perfetto.dev opens"),
      Switch("--force", kHow, Coordinator("--force"), &M::force, /*told_when=*/true, "replace the file of --trace if it exists"),
      Switch("--probe", kHow, Coordinator("--probe"), &M::probe, /*told_when=*/true,
             "measure this machine's rates anew instead of using what an earlier start kept"),
      Switch("--keep-rates", kHow, Coordinator("--keep-rates"), &M::keep_rates, /*told_when=*/true,
             "keep the rates for the next start although the machine was busy when they were measured"),
      OneOf("--log-level", kHow, Both("--log-level"), &M::log_level, kLogLevels, "of the processes it starts"),
  };
}

}  // namespace

std::span<const ModelFlag> ModelFlags() {
  static const std::vector<ModelFlag>* const table = [] {
    auto* flags = new std::vector<ModelFlag>(ModelTable());
    for (ModelFlag& flag : ServerTable()) flags->push_back(std::move(flag));
    return flags;
  }();
  return *table;
}

absl::Status SetModelFlag(const ModelFlag& flag, const std::string& value, ModelOptions* options) {
  CLI::App app;
  CLI::Option* const option = flag.add(app, *options);
  return ParseArguments(app, {option->get_name(), value});
}

}  // namespace ferry
