// ferry-worker: computes some layers of a model for a ferry-coordinator.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "common/command_line.h"
#include "common/ending_signals.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/program.h"
#include "common/rpc/acceptor.h"
#include "common/thread_limit.h"
#include "worker/dense_stream.h"
#include "worker/flags.h"
#include "worker/worker_process.h"

namespace ferry {
namespace {

int ExitCodeOf(const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status)) return 0;
  if (absl::IsResourceExhausted(status)) return kExitLacksRoom;
  // The coordinator refuses to send weights for one reason alone.
  const bool of_weights = absl::StrContains(status.message(), kDenseStreamCall);
  if (absl::IsFailedPrecondition(status)) return of_weights ? kExitModelChanged : kExitCannotRun;
  return absl::IsInvalidArgument(status) || absl::IsUnimplemented(status) ? kExitCannotRun : 1;
}

int Main(int argc, char** argv) {
  CLI::App app(
      "Computes a range of layers for a ferry-coordinator. `ferry serve` starts workers by itself; start one by hand to let "
      "another host take part.",
      "ferry-worker");
  WorkerOptions options;
  AddWorkerFlags(app, options);
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) return *code;
  InitLog("worker", options.log_level);
  for (const absl::Status& status : {CheckDescriptorsAllowed(), CheckThreadsCanStart(WorkerThreads())}) {
    if (status.ok()) continue;
    spdlog::error("{}", status.ToString());
    return ExitCodeOf(status);
  }
  RaiseDescriptorLimit();
  HandleEndingSignals();
  const absl::Status status = RunWorker(options, AskedToEnd, [] { ExitSoon(1); });
  const int code = ExitCodeOf(status);
  if (code != 0) spdlog::error("{}", status.ToString());
  return code;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  return ferry::RunProgram("ferry-worker", [&] { return ferry::Main(argc, argv); });
}
