#pragma once

// What GetModelInfo and GetServerInfo answer, put together from what the parts of the server know.

#include <cstdint>
#include <string>

#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "coordinator/experts/expert_engine.h"
#include "coordinator/experts/expert_exchange.h"
#include "coordinator/experts/expert_hosts.h"
#include "coordinator/generation/generation_loop.h"
#include "coordinator/planning/machine_rates.h"
#include "coordinator/planning/placement.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

// 0: not measured.
struct HostPeaks {
  double read_bytes_per_second = 0, int8_ops_per_second = 0;
};

// How the experts came into the host's memory, and what computes with them there.
struct LoadInfo {
  int64_t arena_bytes = 0;
  bool huge_pages = false;
  double seconds = 0, bytes_per_second = 0;
  HostPeaks peaks;
  std::string engine;
  // Null before they are there, all together.
  const ExpertHosts* expert_hosts = nullptr;
  const ExpertEngine* own_engine = nullptr;
  const ExpertExchange* exchange = nullptr;
};

// An empty alias: the name that the file gives.
v1::GetModelInfoResponse ModelInfoOf(const std::string& alias, const ModelConfig& model, const ArenaLayout& arena,
                                     const CacheShape& cache);

void AddStats(const GenerationStats& stats, v1::GetServerInfoResponse& info);
void AddLoad(const LoadInfo& load, v1::GetServerInfoResponse& info);
// To the host, and to the workers that `info` has already. `kept`: an earlier start measured them.
void AddRates(const MachineRates& rates, bool kept, v1::GetServerInfoResponse& info);
// How steps correct these rates, to the same.
void AddCorrections(const LoadInfo& load, v1::GetServerInfoResponse& info);

}  // namespace ferry
