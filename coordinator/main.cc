// ferry-coordinator: flags into one Options struct, then Server. Ends with 0 after a drain, 1 on an error, 2 on wrong
// flags.

#include <pthread.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "common/clock.h"
#include "common/command_line.h"
#include "common/exit_codes.h"
#include "common/file_access.h"
#include "common/heap_trimmer.h"
#include "common/log.h"
#include "common/output_file.h"
#include "common/program.h"
#include "common/rpc/acceptor.h"
#include "common/signal_cleanup.h"
#include "common/system_call_filter.h"
#include "common/thread_limit.h"
#include "coordinator/flags.h"
#include "coordinator/own_files.h"
#include "coordinator/server.h"

namespace ferry {
namespace {

// SIGTERM, SIGINT and SIGHUP, blocked everywhere and taken by one thread: the first asks for a drain, the second ends the
// process.
class StopSignal {
 public:
  // Before any other thread exists: threads inherit the mask. This outlives the thread.
  absl::Status Start() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    ASSIGN_OR_RETURN(std::thread thread, StartThread([this] {
                       int signal = 0;
                       sigwait(&signals_, &signal);
                       promise_.set_value();
                       sigwait(&signals_, &signal);
                       RemoveRegisteredPaths();
                       std::_Exit(128 + signal);
                     }));
    thread.detach();
    return absl::OkStatus();
  }
  bool WaitFor(std::chrono::milliseconds duration) { return asked_.wait_for(duration) == std::future_status::ready; }

 private:
  sigset_t signals_;
  std::promise<void> promise_;
  std::future<void> asked_ = promise_.get_future();
};

int Fail(const absl::Status& status) {
  spdlog::error("{}", status.ToString());
  return absl::IsInvalidArgument(status) || absl::IsUnimplemented(status) ? kExitCannotRun : 1;
}

// Bounds what somebody who has got hold of this process could do with the machine. Threads inherit the bounds; that of the
// signals, which runs already, only removes what this process has made.
absl::Status BoundItself([[maybe_unused]] const CoordinatorOptions& options) {
#if defined(__SANITIZE_ADDRESS__)
  // The sanitizer writes its reports into files, and stops all threads by ptrace when it looks for leaks.
  spdlog::warn("built with the address sanitizer: access to files and system calls are not bounded");
#else
  ASSIGN_OR_RETURN(const bool files, BoundFileAccess(FilesOf(options)));
  if (!files) spdlog::info("this kernel, or a filter of system calls, gives no Landlock: access to files is not bounded");
  if (!BoundSystemCalls())
    spdlog::info("this kernel, or a filter of system calls, refuses another filter: system calls are not bounded");
#endif
  return absl::OkStatus();
}

int Run(const CoordinatorOptions& options) {
  using namespace std::chrono_literals;
  for (const absl::Status& status : {CheckDescriptorsAllowed(), CheckThreadsCanStart(CoordinatorThreads())}) {
    if (!status.ok()) return Fail(status);
  }
  static StopSignal stop;  // its thread outlives this function
  if (const absl::Status status = stop.Start(); !status.ok()) return Fail(status);
  if (const absl::Status bounded = BoundItself(options); !bounded.ok()) return Fail(bounded);
  RaiseDescriptorLimit();
  ReturnLargePiecesAtOnce();
  const absl::StatusOr<std::unique_ptr<RepeatingThread>> trimmer = StartHeapTrimmer();
  if (!trimmer.ok()) return Fail(trimmer.status());
  absl::StatusOr<std::unique_ptr<Server>> started = Server::Start(options);
  if (!started.ok()) return Fail(started.status());
  Server& server = **started;
  spdlog::info("listening on {}, not serving yet; workers of this host: --coordinator {}", server.address(),
               server.cluster_address());
  if (!options.port_file.empty()) {
    const absl::Status written =
        WriteOutputFile(options.port_file, {.flag = "--port-file", .force = options.force, .inputs = server.inputs()},
                        std::to_string(server.port()) + "\n");
    if (!written.ok()) return Fail(written);
  }

  const absl::Time deadline = Clock::Real()->Now() + options.load_timeout;
  std::packaged_task<absl::Status()> load([&] { return server.Load(); });
  std::future<absl::Status> loaded = load.get_future();
  absl::StatusOr<std::thread> loading = StartThread([&load] { load(); });
  if (!loading.ok()) return Fail(loading.status());
  while (loaded.wait_for(0ms) != std::future_status::ready) {
    // Nobody is served and no worker is here: there is nothing to bring to an end, and reading cannot be interrupted.
    if (stop.WaitFor(50ms)) {
      RemoveRegisteredPaths();
      std::_Exit(0);
    }
  }
  loading->join();
  if (const absl::Status status = loaded.get(); !status.ok()) return Fail(status);

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
  if (const absl::Status status = server.Drain(); !status.ok()) return Fail(status);
  spdlog::info("ended");
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("ferry-coordinator: owns the model, its experts and the API of a Ferry cluster. Usually started by `ferry serve`.",
               "ferry-coordinator");
  CoordinatorFlags flags;
  flags.AddTo(app);
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) return *code;
  const absl::StatusOr<CoordinatorOptions> options = flags.Options();
  if (!options.ok()) {
    std::cerr << "error: " << options.status().message() << '\n';
    return kExitCannotRun;
  }
  InitLog("coordinator", options->log_level);
  return Run(*options);
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  return ferry::RunProgram("ferry-coordinator", [&] { return ferry::Main(argc, argv); });
}
