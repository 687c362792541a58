#pragma once

// A whole worker: joins a cluster, loads its layers, and serves steps until it is asked to end or loses its coordinator.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "common/expert_plan.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/link_choice.h"

namespace ferry {

// How many bytes of device memory experts may take.
struct VramExperts {
  bool automatic = true;  // on a GPU: all memory left; on a CPU: none
  int64_t bytes = 0;      // unless automatic
};
// "4GiB", "512MiB", "1000000", "0", and "auto" or "-1". InvalidArgument: anything else.
absl::StatusOr<VramExperts> ParseVramExperts(const std::string& text);

// Whether the device computes experts where they lie in the host's memory, without slots.
enum class Unified { kAuto, kOn, kOff };  // kAuto: where its memory is the host's

// Every flag of ferry-worker.
struct WorkerOptions {
  std::string coordinator;    // unix:PATH, HOST or HOST:PORT
  std::string listen;         // where other processes reach this worker; empty: beside the coordinator's socket, or 127.0.0.1
  std::string cluster_certs;  // folder of certificates (common/tls/cluster_ca.h), for everything but Unix sockets
  BackendOptions backend;
  VramExperts vram_experts;
  Unified unified = Unified::kAuto;
  std::string expert_transport = "auto";   // auto, shm, grpc
  Transport transport = Transport::kAuto;  // of hidden states to the next worker
  int64_t data_port = 0;                   // where the worker before this one makes its data connection; 0: any
  std::string nccl_library;                // file; empty: libnccl.so.2 from where the system looks
  std::string nccl_interface;              // network interface for NCCL between hosts; empty: none
  std::optional<uint32_t> wanted_worker_id;
  ExpertRule force_division = ExpertRule::kAny;
  double connect_patience_seconds = 60;  // how long to wait at start for a coordinator that cannot be reached
  std::string log_level = "info";
};

// Runs a worker until `asked_to_end`, polled a few times a second, returns true, or until Shutdown is called; then returns OK.
// Returns an error when the worker cannot join or load, or loses its coordinator. Calls `on_ending` from any thread when the end
// begins: a long computation or load may delay the return, and the caller may want to stop waiting.
absl::Status RunWorker(const WorkerOptions& options, const std::function<bool()>& asked_to_end,
                       const std::function<void()>& on_ending);

}  // namespace ferry
