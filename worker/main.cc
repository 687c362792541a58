// ferry-worker: computes some layers of a model for a ferry-coordinator.

#include <signal.h>
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/rpc/acceptor.h"
#include "common/tls/cluster_ca.h"
#include "worker/worker_process.h"

namespace ferry {
namespace {

volatile sig_atomic_t asked_to_end = 0;
void AskToEnd(int) { asked_to_end = 1; }

// A worker that a supervisor started is ended by it: Ctrl-C in the terminal reaches both, and the supervisor drains first.
void HandleSignals() {
  int parent_death_signal = 0;
  prctl(PR_GET_PDEATHSIG, &parent_death_signal);
  signal(SIGTERM, AskToEnd);
  signal(SIGINT, parent_death_signal != 0 ? SIG_IGN : AskToEnd);
  signal(SIGPIPE, SIG_IGN);
}

// Exits in `seconds`, whatever hangs: a worker that ends must not stay behind as a process.
void ExitLatest(int seconds, int code) {
  std::thread([=] {
    std::this_thread::sleep_for(std::chrono::seconds(seconds));
    std::_Exit(code);
  }).detach();
}

// Whether another start with the same flags would end the same way: a supervisor need not try.
bool IsForGood(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status) || absl::IsUnimplemented(status) ||
         absl::IsResourceExhausted(status);
}

int Main(int argc, char** argv) {
  WorkerOptions options;
  std::string vram_experts = "auto";
  CLI::App app{
      "Computes a range of layers for a ferry-coordinator. `ferry serve` starts workers by itself; start one by hand "
      "to let another host take part."};
  app.add_option(
         "--coordinator", options.coordinator,
         "unix:PATH of a coordinator of this host, as it says at its start, or HOST or HOST:PORT of another host's (port 8091)")
      ->required();
  app.add_option(
      "--listen", options.listen,
      "ADDR or ADDR:PORT where the coordinator and other workers reach this one (port 0: any; 0.0.0.0: every interface); "
      "default: a socket beside the coordinator's, or 127.0.0.1");
  options.cluster_certs = DefaultClusterFolder();
  app.add_option("--cluster-certs", options.cluster_certs,
                 "folder with this host's certificates, for a coordinator of another host")
      ->capture_default_str();
  app.add_option("--backend", options.backend.kind, "auto (a GPU if there is one), cpu, cuda or reference")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}))
      ->capture_default_str();
  app.add_option("--device", options.backend.device, "which GPU")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--threads", options.backend.num_threads, "CPU threads; 0: one a physical core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--pin,!--no-pin", options.backend.pin_threads, "keep each thread on a core of its own (default)");
  app.add_option("--isa", options.backend.isa, "CPU instructions: auto, avx512, avx2 or portable")->capture_default_str();
  app.add_option(
         "--vram-experts", vram_experts,
         "device memory for experts: 4GiB; 0: none, the host computes them; auto: all that is left on a GPU, none on a CPU")
      ->capture_default_str();
  app.add_option("--expert-transport", options.expert_transport,
                 "how to reach experts: shm (on the coordinator's host), grpc, auto (shm where possible)")
      ->check(CLI::IsMember({"auto", "shm", "grpc"}))
      ->capture_default_str();
  app.add_option("--worker-id", options.wanted_worker_id, "the place in the pipeline to ask for; default: a free one");
  app.add_option("--force-division", options.force_division,
                 "for tests and measurements: where to compute activated experts: auto (as planned), host or ship")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, ExpertRule>{
              {"auto", ExpertRule::kAny}, {"host", ExpertRule::kHost}, {"ship", ExpertRule::kDevice}},
          CLI::ignore_case));
  app.add_option("--connect-patience", options.connect_patience_seconds,
                 "seconds to wait for a coordinator that cannot be reached")
      ->capture_default_str();
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error or off")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  InitLog("worker", options.log_level);
  const absl::StatusOr<VramExperts> vram = ParseVramExperts(vram_experts);
  if (!vram.ok()) {
    spdlog::error("--vram-experts: {}", vram.status().ToString());
    return kExitCannotRun;
  }
  options.vram_experts = *vram;
  RaiseDescriptorLimit();
  HandleSignals();
  std::thread([] {  // also while it loads, when nobody looks
    while (asked_to_end == 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ExitLatest(/*seconds=*/3, /*code=*/0);
  })
      .detach();
  const absl::Status status = RunWorker(
      options, [] { return asked_to_end != 0; }, [] { ExitLatest(/*seconds=*/3, /*code=*/1); });
  if (status.ok() || absl::IsCancelled(status)) return 0;
  spdlog::error("{}", status.ToString());
  return IsForGood(status) ? kExitCannotRun : 1;
}

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) { return ferry::Main(argc, argv); }
