#pragma once

// The hosts of a cluster as a file describes them, for `ferry plan --hosts`. JSON, with comments:
//
//   {
//     "network": {"rate": "1.2GB/s", "exchange_us": 60},
//     "hosts": [
//       {"name": "head", "address": "192.0.2.1", "memory": "128GiB", "cores": 16, "read": "85GB/s", "flops": 1.5e12,
//        "gpus": ["24GiB"], "link": "25GB/s", "gpu_flops": 200e12},
//       {"name": "second", "memory": "64GiB", "read": "85GB/s", "flops": 1.5e12, "gpus": ["24GiB", "24GiB"]},
//       {"name": "third", "memory": "64GiB", "read": "40GB/s", "flops": 1e12, "network_rate": "110MB/s"}
//     ]
//   }

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace ferry {

struct DescribedHost {
  std::string name, address;   // without an address: the name
  int64_t memory_bytes = 0;    // that Ferry may take
  int64_t cores = 0;           // threads of its engine; 0: not said, all
  double read = 0, flops = 0;  // of its engine: bytes of experts and products a second
  std::vector<int64_t> gpu_bytes;
  bool cpu_worker = false;                        // where no host has GPUs: a worker on its cores may take layers
  double link = 0, gpu_flops = 0;                 // of its GPUs; 0: not said
  double network_rate = 0, exchange_seconds = 0;  // between it and the first host
};

// The first host is the coordinator's. InvalidArgument: "line 7: ..." and what would be right.
absl::StatusOr<std::vector<DescribedHost>> ParseHosts(const std::string& text);
// Of a file; the errors begin with its name.
absl::StatusOr<std::vector<DescribedHost>> ReadHosts(const std::string& path);

}  // namespace ferry
