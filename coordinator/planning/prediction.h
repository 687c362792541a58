#pragma once

// Predicts how fast a placement will run, before anything is loaded. It follows the runtime layer by layer, with the model's own
// router and the machine's rates. Pure functions with a fixed seed.

#include <cstdint>
#include <vector>

#include "common/gguf/gguf.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "coordinator/experts/expert_planner.h"
#include "coordinator/experts/held_experts.h"
#include "coordinator/planning/machine_rates.h"
#include "coordinator/planning/network_costs.h"
#include "coordinator/planning/placement.h"

namespace ferry {

// The probability that an expert is among a token's top_k: one vector of experts for each layer. The model of routing: a token's
// router logits are normal around the router's biases. Their deviation is that of an RMS-normed input of unit variance, which is
// the norm of the expert's router row times the norm weights. A part of the variance, which grows with depth, is common to all
// tokens. The probabilities are sampled with a fixed seed.
absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config);

// The mean number of experts of a layer that `tokens` tokens activate: the sum of 1 - (1 - p)^tokens.
double ExpectedActivated(const std::vector<double>& probabilities, int64_t tokens);

struct PrefillPrediction {
  int64_t tokens = 0;
  int64_t step_rows = 0;  // rows of each step but the last
  double seconds = 0;
  double activated = 0, resident = 0, shipped = 0, on_host = 0;  // experts, summed over layers and steps
  double helped = 0;                                             // of those shipped: by another worker than the layer's
  double bytes_shipped = 0;
  std::vector<double> on_expert_hosts;  // experts, of those on the host: by each of the input's expert hosts
  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};
struct DecodePrediction {
  double seconds_per_token = 0;
  double host_bytes = 0;                  // read from host memory for one token
  double device_bytes = 0;                // read from the workers' own memory for one token
  double resident_share = 0;              // share of a token's experts
  double host_expert_bytes = 0;           // of host_bytes: experts
  std::vector<double> expert_host_bytes;  // of these, by each of the input's expert hosts
};

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
// One prompt alone. At its start the slots are empty, except slots that hold every expert, which are filled at load. Copying
// ahead has learnt from earlier prompts.
PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens);
// One sequence alone behind `context` tokens; the slots hold the experts that the model uses most.
DecodePrediction PredictDecode(const PredictionInput& input, int64_t context = 0);
// The mean over the first `tokens` behind a prompt that began with empty slots. The slots hold the experts that its prefill
// copied, and decode fills the others.
DecodePrediction PredictDecodeAfter(const PredictionInput& input, const PrefillPrediction& prefill, int64_t tokens);

}  // namespace ferry
