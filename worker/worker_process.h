#pragma once

// A whole worker: joins a cluster, loads its layers, serves steps until it is asked to end or has lost its coordinator.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "common/status.h"
#include "kernels/ops.h"
#include "worker/expert_forward.h"

namespace ferry {

// How many bytes of device memory experts may take.
struct VramExperts {
  bool automatic = true;  // a GPU: what is left; none otherwise
  int64_t bytes = 0;      // unless automatic
};
// "4GiB", "512MiB", "1000000", "auto", "0". InvalidArgument: anything else.
absl::StatusOr<VramExperts> ParseVramExperts(const std::string& text);

// Every flag of ferry-worker.
struct WorkerOptions {
  std::string coordinator;             // HOST or HOST:PORT
  std::string listen = "127.0.0.1:0";  // where other processes reach this worker; port 0: any free one
  BackendOptions backend;
  VramExperts vram_experts;
  std::string expert_transport = "auto";  // auto, shm, grpc
  std::optional<uint32_t> wanted_worker_id;
  ForceDivision force_division = ForceDivision::kAuto;
  double connect_patience_seconds = 60;  // how long an unreachable coordinator is waited for at start
  std::string log_level = "info";
};

// Runs until `asked_to_end` returns true (looked at a few times a second) or Shutdown was called: OK. An error: it could not join
// or load, or the coordinator was lost. `on_ending` is called when the end begins, from any thread: what computes or loads then
// may take long to notice, and the caller may not want to wait.
absl::Status RunWorker(const WorkerOptions& options, const std::function<bool()>& asked_to_end,
                       const std::function<void()>& on_ending);

}  // namespace ferry
