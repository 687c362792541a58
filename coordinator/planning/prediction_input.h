#pragma once

// What the predictions of prefill and of decode start from: a model, its placement, and the rates of the machines.

#include <cstdint>
#include <vector>

#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/experts/held_experts.h"
#include "coordinator/planning/machine_rates.h"
#include "coordinator/planning/network_costs.h"
#include "coordinator/planning/placement.h"

namespace ferry {

// An engine of another host, which computes a share of the experts that workers leave to the coordinator's host.
struct PredictedExpertHost {
  EnginePlace place;  // `holds` is unused
  HeldExperts held;
};

struct PredictionInput {
  const ModelConfig& config;
  const ModelSizes& sizes;
  const ArenaLayout& arena;
  const Placement& placement;
  const std::vector<std::vector<double>>& routing;
  // rates.workers has one entry for each worker. The link of one on another host carries records over the network. A CPU worker
  // on another host has its host's engine as WorkerRates::experts.
  MachineRates rates;
  std::vector<int64_t> slots;  // experts that each worker can hold
  bool gpu = false;            // the workers have GPUs; otherwise they share the host's cores
  bool ooae = true;
  bool help = false;  // workers with GPUs ship and compute experts for each other (--share-links)
  std::vector<PredictedExpertHost> expert_hosts = {};
  bool cold = false;                         // slots that could hold every expert were emptied, as by bench --cold
  std::vector<WorkerNetwork> networks = {};  // of each worker; empty: all are on the coordinator's host
  // Cores of the coordinator's host, used with `networks` alone: a data connection that carries something takes one of them. 0:
  // so many that this does not count.
  int64_t first_host_cores = 0;
  WorkerNetwork NetworkOf(size_t worker) const { return networks.empty() ? WorkerNetwork() : networks[worker]; }
};

// The expert hosts as places of a plan of `layer`.
std::vector<EnginePlace> OthersOf(const PredictionInput& input, int64_t layer);
// What a CPU worker computes with: its host's cores.
const ExpertRates& CoresOf(const PredictionInput& input, size_t worker);
// What the coordinator's engines compute of a layer: `entries` (row, expert) pairs.
HostShareSize ShareOf(const PredictionInput& input, int64_t rows, double entries);

// The share of the slots whose experts a later step of the same prompt, or the first token behind it, uses. Fitted to the runs in
// docs/measurements.
inline constexpr double kKeptShare = 0.8;
// Of what predictions draw by chance.
inline constexpr uint64_t kPredictionSeed = 20;

}  // namespace ferry
