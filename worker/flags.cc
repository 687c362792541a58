#include "worker/flags.h"

#include <string>
#include <utility>
#include <vector>

#include "common/command_line.h"
#include "common/log.h"
#include "common/thread_pool.h"
#include "common/tls/cluster_ca.h"
#include "kernels/cpu/isa.h"

namespace ferry {
namespace {

// A flag that takes the name of one of the values.
template <typename T>
void AddNamed(CLI::App& app, const std::string& name, const std::string& names, const std::string& help,
              std::vector<std::pair<std::string, T>> values, T& value) {
  command_line::AddValue(app, name, names, help,
                         [values = std::move(values), names, &value](const std::string& text) -> absl::Status {
                           for (const auto& [candidate, meaning] : values) {
                             if (text != candidate) continue;
                             value = meaning;
                             return absl::OkStatus();
                           }
                           return InvalidArgument("'%s', want one of %s", text, names);
                         });
}

}  // namespace

void AddWorkerFlags(CLI::App& app, WorkerOptions& options) {
  AddText(app, "--coordinator", options.coordinator,
          "unix:PATH of a coordinator of this host, as it says at its start, or HOST or HOST:PORT of another host's (port 8091)")
      ->required();
  options.cluster_certs = DefaultClusterFolder();
  AddText(app, "--cluster-certs", options.cluster_certs,
          "folder with this host's certificates, for a coordinator of another host (default " + options.cluster_certs + ")");
  AddText(app, "--listen", options.listen,
          "ADDR or ADDR:PORT where the coordinator and other workers reach this one (port 0: any; 0.0.0.0: every interface); "
          "default: a socket beside the coordinator's, or 127.0.0.1");
  AddChoice(app, "--backend", options.backend.kind, {"auto", "cpu", "cuda", "reference"},
            "kernels (default auto: those of a GPU if there is one)");
  AddInteger(app, "--device", options.backend.device, {.max = 1023}, "which GPU (default 0)");
  AddInteger(app, "-t,--threads", options.backend.num_threads, {.max = kMaxThreads, .automatic = 0},
             "CPU threads; 0, the default: one a physical core");
  AddSwitch(app, "--pin,!--no-pin", options.backend.pin_threads, "keep each thread on a core of its own (default)");
  AddChoice(app, "--isa", options.backend.isa, IsaChoices(), "CPU instructions (default auto)");
  command_line::AddValue(app, "--vram-experts", "SIZE",
                         "device memory for experts: 4GiB; 0: none, the host computes them; auto, the default: all that is left "
                         "on a GPU, none without",
                         [&options](const std::string& text) -> absl::Status {
                           ASSIGN_OR_RETURN(options.vram_experts, ParseVramExperts(text));
                           return absl::OkStatus();
                         });
  AddNamed(
      app, "--unified", "auto|on|off",
      "compute experts where they lie in the host's memory, without slots (default auto: on a GPU whose memory is the host's)",
      {{"auto", Unified::kAuto}, {"on", Unified::kOn}, {"off", Unified::kOff}}, options.unified);
  AddChoice(app, "--expert-transport", options.expert_transport, {"auto", "shm", "tcp", "grpc"},
            "how experts come: shm on the same host, tcp over connections of their own, grpc, or auto, the default: the first of "
            "these that is possible");
  AddNamed(
      app, "--transport", "auto|shm|tcp|nccl|grpc",
      "how hidden states go to the next worker: through memory of one host, over a connection of their own, over NCCL between "
      "GPUs, or over gRPC (default auto: the fastest of those)",
      {{"auto", Transport::kAuto},
       {"shm", Transport::kShm},
       {"tcp", Transport::kTcp},
       {"nccl", Transport::kNccl},
       {"grpc", Transport::kGrpc}},
      options.transport);
  AddInteger(app, "--data-port", options.data_port, {.max = 65535},
             "port where the worker before this one, on another host, makes its connection for hidden states (default: any)");
  AddText(app, "--nccl-library", options.nccl_library, "file of NCCL 2.18 or later (default: libnccl.so.2 of the system)");
  AddText(
      app, "--nccl-interface", options.nccl_interface,
      "network interface for NCCL between hosts, of a network that nobody else can use: NCCL encrypts nothing (default: none, "
      "and NCCL stays within a host)");
  AddInteger(app, "--worker-id", options.wanted_worker_id, {.max = 1023},
             "the place in the pipeline to ask for; default: a free one");
  AddNamed(app, "--force-division", "auto|host|ship",
           "for tests and measurements: where activated experts are computed, whatever is planned (default auto)",
           {{"auto", ExpertRule::kAny}, {"host", ExpertRule::kHost}, {"ship", ExpertRule::kDevice}}, options.force_division);
  AddDecimal(app, "--connect-patience", options.connect_patience_seconds, 0, 86400,
             "seconds to wait for a coordinator that cannot be reached (default 60)");
  AddChoice(app, "--log-level", options.log_level, kLogLevels, "(default info)");
}

}  // namespace ferry
