#pragma once

// The router's arithmetic behind the logits of one row: kernels/ops.h, Route.

#include <cstdint>
#include <vector>

#include "common/model/model_config.h"

namespace ferry {

// Keeps scratch between rows: one object a thread. `config` and `selection_bias` ([num_experts], or null) must outlive it.
class ExpertChoice {
 public:
  ExpertChoice(const RouterConfig& config, const float* selection_bias);

  // From logits [num_experts] to experts and weights [top_k], best first, ties to the lower id. Ids are distinct and in range
  // whatever the logits are.
  void Choose(const float* logits, int32_t* experts, float* weights);

 private:
  void SoftmaxOfLargest(const float* logits, int32_t* experts, float* weights) const;
  void Score(const float* logits);
  void ChooseGroups();
  bool InUse(int64_t expert) const;
  int64_t group_size() const { return config_.num_experts / config_.num_groups; }

  const RouterConfig& config_;
  const float* const selection_bias_;
  const bool of_logits_;  // softmax over the chosen logits is all that the configuration asks for
  std::vector<double> scores_, choice_, worths_;
  std::vector<int32_t> groups_;  // the best, of the row in progress
};

}  // namespace ferry
