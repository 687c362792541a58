#pragma once

// The options of a coordinator, read once from its command line.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "coordinator/planning/placement.h"

namespace ferry {

struct CoordinatorOptions {
  std::string model;                      // -m
  std::string alias;                      // --alias: the model's name in the API; empty: the one in its file
  std::string listen = "127.0.0.1:8090";  // --listen, --port; port 0: any free one
  std::string tls_cert, tls_key;          // --tls-cert --tls-key: PEM files of the API; empty: it is not encrypted
  std::string api_keys;                   // --api-keys: file of keys (common/access/api_keys.h); empty: nobody needs one
  std::string api_socket;                 // --api-socket: Unix socket of the API beside --listen, never encrypted; empty: none
  bool insecure = false;                  // --insecure: others may reach --listen although nobody needs a key
  std::string cluster_socket;             // --cluster-socket: Unix socket for workers of this host; empty: in a folder of its own
  int64_t cluster_data_port = 0;          // --cluster-data-port: where workers of other hosts make data connections; 0: any
  std::string cluster_listen;             // --cluster-listen: HOST:PORT for workers of other hosts; empty: there are none
  std::string cluster_certs;              // --cluster-certs: folder of certificates for them (common/tls/cluster_ca.h)
  std::string port_file;                  // --port-file: the port in use is written here once it is
  PlacementOptions placement;             // --workers --layers -ot -c -b -ub -np -ctk -ctv
  int64_t cache_ram_bytes = -1;           // --cache-ram: host memory for the KV cache; -1: a share of what is free
  bool ooae = true;                       // --no-ooae: every expert of a layer is shipped
  int threads = 0;                        // --threads; 0: one a physical core
  std::string backend = "cpu";            // --backend of the expert engine: cpu or reference
  std::string isa = "auto";               // --isa
  std::string divide_experts = "auto";    // --divide-experts: auto, even, off; among the expert hosts
  std::string share_links = "auto";       // --share-links: auto, even, off; a layer's copies among the workers of a host
  std::string expert_transport = "auto";  // --expert-transport: for workers that say auto
  int64_t max_queued = 64;                // --queue
  int steps_in_flight = 0;                // --steps-in-flight; 0: one a worker
  absl::Duration heartbeat_interval = absl::Seconds(1);
  absl::Duration heartbeat_timeout = absl::Seconds(10);
  absl::Duration step_timeout = absl::Seconds(120);
  absl::Duration load_timeout = absl::Minutes(30);  // until all workers are ready for the first time
  absl::Duration drain_timeout = absl::Seconds(30);
  bool resume = true;                                  // --resume: requests go on when a lost worker's place is taken again
  absl::Duration resume_patience = absl::Seconds(30);  // --resume-patience: if that happens within this time
  double host_read_bytes_per_second = 0;               // --host-read-rate, --host-flops: 0: probed
  double host_flops_per_second = 0;
  std::string trace;        // --trace: a Chrome trace is written here; empty: none
  bool force = false;       // --force: existing files may be replaced by the trace and the port file
  bool keep_rates = false;  // --keep-rates: although the machine was busy when they were measured
  bool probe = false;       // --probe: rates are measured although an earlier start kept some
  std::string log_level = "info";
};

// The values of -ctk and -ctv; f32 is for the reference kernels.
inline const std::vector<const char*> kKvTypes = {"f16", "q8_0", "f32"};
// Parses "f16" or "Q8_0". InvalidArgument names the flag.
absl::StatusOr<DType> ParseKvType(const std::string& flag, const std::string& name);

// The value of --cache-ram in bytes: "8GiB", or a plain number of MiB, as llama.cpp takes it; "auto" is -1. InvalidArgument.
absl::StatusOr<int64_t> ParseCacheRam(const std::string& text);

// Checks the options that do not depend on the model. InvalidArgument names the flag.
absl::Status CheckOptions(const CoordinatorOptions& options);

}  // namespace ferry
