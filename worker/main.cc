// ferry-worker: computes some layers of a model for a ferry-coordinator.

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "common/command_line.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/program.h"
#include "common/rpc/acceptor.h"
#include "common/signal_cleanup.h"
#include "common/thread_limit.h"
#include "worker/dense_stream.h"
#include "worker/flags.h"
#include "worker/worker_process.h"

namespace ferry {
namespace {

constexpr unsigned kEndingSeconds = 3;

volatile sig_atomic_t asked_to_end = 0, ending = 0, exit_code = 0;

// Exits in some seconds, whatever hangs: a worker that ends must not stay behind as a process. By the alarm clock, since another
// thread may not start then. Async-signal-safe.
void ExitLatest(int code) {
  if (ending != 0) return;  // a later call changes neither the exit code nor the alarm
  ending = 1;
  exit_code = code;
  alarm(kEndingSeconds);
}
void AskToEnd(int) {
  asked_to_end = 1;
  ExitLatest(0);
}

// A worker that a supervisor started is ended by it: Ctrl-C in the terminal reaches both, and the supervisor drains first.
void HandleSignals() {
  int parent_death_signal = 0;
  prctl(PR_GET_PDEATHSIG, &parent_death_signal);
  signal(SIGALRM, [](int) {
    RemoveRegisteredPaths();
    _exit(exit_code);
  });
  signal(SIGTERM, AskToEnd);
  signal(SIGINT, parent_death_signal != 0 ? SIG_IGN : AskToEnd);
}

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
  HandleSignals();
  const absl::Status status = RunWorker(
      options, [] { return asked_to_end != 0; }, [] { ExitLatest(1); });
  const int code = ExitCodeOf(status);
  if (code != 0) spdlog::error("{}", status.ToString());
  return code;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  return ferry::RunProgram("ferry-worker", [&] { return ferry::Main(argc, argv); });
}
