#pragma once

// The machine that `ferry plan` plans for: this one, or one whose memory and rates are given by hand.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/predicted_model.h"

namespace ferry {

// What the command line says of a machine. 0 and empty: as this machine has it.
struct MachineByHand {
  std::vector<int64_t> gpu_bytes;  // memory of each GPU; one entry stands for all of --workers
  int64_t host_bytes = 0;          // memory for the server
  double host_read = 0, link = 0;  // bytes a second
  double host_flops = 0, gpu_flops = 0;
};

// What a worker computes on.
struct PlannedDevice {
  std::string name;  // "cuda:0", "cpu"
  bool gpu = false;
  int64_t total_bytes = 0, free_bytes = 0;  // of a GPU; a CPU worker takes from the host's memory
  bool of_host = false;                     // the GPU's memory is the host's
  bool in_place = false;                    // it reads experts where they lie, and has no slots
  bool elsewhere = false;                   // on another host than the coordinator's, with memory of its own
};

struct PlannedMachine {
  std::vector<PlannedDevice> devices;  // of each worker; at least one
  int64_t host_bytes = 0;              // memory that the server may take
  bool gpus_by_hand = false;           // there are GPUs, and they are not this machine's
  MachineByHand by_hand;

  bool gpu() const { return devices.front().gpu; }
  // Memory of the smallest GPU; 0: there is none.
  int64_t SmallestGpu() const;
};

// InvalidArgument: --gpu-memory beside --gpus or --backend cpu, or another number of sizes than --workers. Otherwise the errors
// of ModelOptions::Devices.
absl::StatusOr<PlannedMachine> PlannedMachineOf(const ModelOptions& options, const MachineByHand& by_hand);

// Experts that each worker of `model` can hold; all of its layers where it reads them in place.
absl::StatusOr<std::vector<int64_t>> SlotsOf(const ModelOptions& options, const PredictedModel& model,
                                             const PlannedMachine& machine);

// The rates of the machine's parts: those given by hand; those that an earlier start on this machine kept for the same workers;
// otherwise host, links and GPUs are measured here, one after the other, for about a second. GPUs that are not here are assumed
// to have kAssumedLink and kAssumedGpu.
absl::StatusOr<FoundRates> RatesOf(const ModelOptions& options, const PredictedModel& model, const PlannedMachine& machine);

// Bytes a second: three quarters of what a PCIe 4.0 link of 16 lanes has, which leaves the rest to protocol and pauses.
inline constexpr double kAssumedLink = 24e9;

// Bytes or operations a second.
inline constexpr double kMaxRate = 1e18;
// Bytes a second, at most kMaxRate: "25e9", "25GB", "25.5 GB/s".
absl::StatusOr<double> ParseRate(const std::string& text);

// Memory that a placement lacks.
struct Lack {
  std::string where;  // "host memory", "GPU 0"
  int64_t needed_bytes = 0, had_bytes = 0;
  int64_t missing_bytes() const { return needed_bytes - had_bytes; }
};
struct Fit {
  int64_t host_needed_bytes = 0;  // experts, and what CPU workers hold
  std::vector<Lack> lacks;        // empty: it fits
};
// The memory of other hosts is not looked at, but for their GPUs'.
Fit FitOf(const ModelOptions& options, const PredictedModel& model, const PlannedMachine& machine);

}  // namespace ferry
