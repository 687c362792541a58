// ferry-expert-host: holds experts of a model in this host's memory and computes with them for a ferry-coordinator.

#include <CLI/CLI.hpp>
#include <optional>

#include "common/byte_size.h"
#include "common/command_line.h"
#include "common/ending_signals.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/program.h"
#include "common/thread_limit.h"
#include "common/thread_pool.h"
#include "common/tls/cluster_ca.h"
#include "expert_host/expert_host_process.h"
#include "kernels/cpu/isa.h"

namespace ferry {
namespace {

void AddFlags(CLI::App& app, ExpertHostOptions& options) {
  AddText(app, "--coordinator", options.coordinator,
          "HOST or HOST:PORT of a coordinator's --cluster-listen (port 8091), or unix:PATH of one of this host")
      ->required();
  options.cluster_certs = DefaultClusterFolder();
  AddText(app, "--cluster-certs", options.cluster_certs,
          "folder with this host's certificates (default " + options.cluster_certs + ")");
  AddText(app, "--listen", options.listen,
          "ADDR or ADDR:PORT where the coordinator reaches this host (port 0: any; 0.0.0.0: every interface); default: the "
          "interface towards the coordinator");
  AddText(app, "-m,--model", options.model,
          "GGUF file of the coordinator's model on this host; default: the coordinator sends the experts");
  command_line::AddValue(app, "--memory", "SIZE", "memory for experts: 48GiB; default: what is available, but for a sixteenth",
                         [&options](const std::string& text) -> absl::Status {
                           ASSIGN_OR_RETURN(options.memory_bytes, ParseByteSize(text));
                           return absl::OkStatus();
                         });
  options.backend.kind = "cpu";
  AddChoice(app, "--backend", options.backend.kind, {"cpu", "reference"}, "kernels (default cpu)");
  AddInteger(app, "-t,--threads", options.backend.num_threads, {.max = kMaxThreads, .automatic = 0},
             "CPU threads; 0, the default: one a physical core");
  AddSwitch(app, "--pin,!--no-pin", options.backend.pin_threads, "keep each thread on a core of its own (default)");
  AddChoice(app, "--isa", options.backend.isa, IsaChoices(), "CPU instructions (default auto)");
  AddDecimal(app, "--connect-patience", options.connect_patience_seconds, 0, 86400,
             "seconds to wait for a coordinator that cannot be reached (default 60)");
  AddChoice(app, "--log-level", options.log_level, kLogLevels, "(default info)");
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status)) return 0;
  if (absl::IsResourceExhausted(status)) return kExitLacksRoom;
  const bool for_good = absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status) || absl::IsUnimplemented(status) ||
                        absl::IsUnauthenticated(status) || absl::IsNotFound(status);
  return for_good ? kExitCannotRun : 1;
}

int Main(int argc, char** argv) {
  CLI::App app(
      "Holds experts of a model in this host's memory and computes with them for a ferry-coordinator of another host. `ferry "
      "join "
      "--experts` starts it.",
      "ferry-expert-host");
  ExpertHostOptions options;
  AddFlags(app, options);
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) return *code;
  InitLog("expert host", options.log_level);
  absl::Status status = CheckDescriptorsAllowed();
  if (status.ok()) status = CheckThreadsCanStart(WorkerThreads());
  if (status.ok()) {
    HandleEndingSignals();
    status = RunExpertHost(options, AskedToEnd);
  }
  const int code = ExitCodeOf(status);
  if (code != 0) spdlog::error("{}", status.ToString());
  return code;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  return ferry::RunProgram("ferry-expert-host", [&] { return ferry::Main(argc, argv); });
}
