#pragma once

// A whole expert host: joins a cluster, loads its records, and computes with them until it is asked to end or loses its
// coordinator.

#include <cstdint>
#include <functional>
#include <string>

#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

// Every flag of ferry-expert-host.
struct ExpertHostOptions {
  std::string coordinator;    // unix:PATH, HOST or HOST:PORT
  std::string listen;         // of the data connection; empty: beside the coordinator's socket, or the interface towards it
  std::string cluster_certs;  // folder of certificates (common/tls/cluster_ca.h), for everything but Unix sockets
  std::string model;          // GGUF file of the same model; empty: the records come from the coordinator
  int64_t memory_bytes = 0;   // for records; 0: what this host has, but for a reserve
  BackendOptions backend;
  double connect_patience_seconds = 60;  // for a coordinator that cannot be reached, at the start and later
  std::string log_level = "info";
};

// Runs until `asked_to_end`, polled a few times a second, returns true; then returns OK. InvalidArgument, FailedPrecondition:
// another start ends the same way; Unavailable: the coordinator is lost.
absl::Status RunExpertHost(const ExpertHostOptions& options, const std::function<bool()>& asked_to_end);

}  // namespace ferry
