#include "coordinator/planning/prediction_input.h"

namespace ferry {

std::vector<EnginePlace> OthersOf(const PredictionInput& input, int64_t layer) {
  std::vector<EnginePlace> others;
  for (const PredictedExpertHost& host : input.expert_hosts) {
    others.push_back(host.place);
    others.back().holds = host.held[layer];
    if (others.back().holds == nullptr) others.back().rates = {};  // none of this layer
  }
  return others;
}

const ExpertRates& CoresOf(const PredictionInput& input, size_t worker) {
  return input.NetworkOf(worker).host == 0 ? input.rates.host : input.rates.workers[worker].experts;
}

HostShareSize ShareOf(const PredictionInput& input, int64_t rows, double entries) {
  return {.rows = rows,
          .n_embd = input.config.n_embd,
          .entries = entries,
          .most_rows = input.placement.cache.max_batch_tokens,
          .top_k = input.config.router.top_k};
}

}  // namespace ferry
