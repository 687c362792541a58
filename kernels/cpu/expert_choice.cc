#include "kernels/cpu/expert_choice.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ferry {
namespace {

// The `count` largest of `values` but the ones that `skip` says, best first, ties to the lower id. A NaN is never larger than
// anything, so ids are distinct and in range whatever the numbers are.
template <typename T, typename Skip>
void Largest(const T* values, int64_t num_values, int64_t count, const Skip& skip, int32_t* ids) {
  for (int64_t rank = 0; rank < count; ++rank) {
    int64_t best = -1;
    for (int64_t id = 0; id < num_values; ++id) {
      if (skip(id) || std::find(ids, ids + rank, static_cast<int32_t>(id)) != ids + rank) continue;
      if (best < 0 || values[id] > values[best] || (std::isnan(values[best]) && !std::isnan(values[id]))) best = id;
    }
    ids[rank] = static_cast<int32_t>(best);
  }
}

}  // namespace

ExpertChoice::ExpertChoice(const RouterConfig& config, const float* selection_bias)
    : config_(config),
      selection_bias_(selection_bias),
      of_logits_(config.score == RouterScore::kSoftmax && config.normalise && selection_bias == nullptr &&
                 config.groups_used == config.num_groups) {}

void ExpertChoice::Choose(const float* logits, int32_t* experts, float* weights) {
  if (of_logits_) return SoftmaxOfLargest(logits, experts, weights);
  Score(logits);
  const auto left_out = [this](int64_t expert) { return !InUse(expert); };
  Largest(choice_.data(), config_.num_experts, config_.top_k, left_out, experts);
  double sum = 0;
  for (int64_t rank = 0; rank < config_.top_k; ++rank) sum += scores_[experts[rank]];
  const double factor = config_.weight_scale / (config_.normalise ? sum : 1);
  for (int64_t rank = 0; rank < config_.top_k; ++rank) {
    weights[rank] = static_cast<float>(scores_[experts[rank]] * factor);
  }
}

// Softmax over all, renormalised over the chosen, is softmax over the chosen.
void ExpertChoice::SoftmaxOfLargest(const float* logits, int32_t* experts, float* weights) const {
  const int64_t top_k = config_.top_k;
  Largest(
      logits, config_.num_experts, top_k, [](int64_t) { return false; }, experts);
  double sum = 0;
  for (int64_t rank = 0; rank < top_k; ++rank) sum += std::exp(static_cast<double>(logits[experts[rank]]) - logits[experts[0]]);
  for (int64_t rank = 0; rank < top_k; ++rank) {
    weights[rank] = static_cast<float>(std::exp(static_cast<double>(logits[experts[rank]]) - logits[experts[0]]) / sum *
                                       config_.weight_scale);
  }
}

void ExpertChoice::Score(const float* logits) {
  scores_.resize(config_.num_experts);
  if (config_.score == RouterScore::kSigmoid) {
    for (int64_t e = 0; e < config_.num_experts; ++e) scores_[e] = 1 / (1 + std::exp(-static_cast<double>(logits[e])));
  } else {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t e = 0; e < config_.num_experts; ++e) largest = std::max<double>(largest, logits[e]);
    for (int64_t e = 0; e < config_.num_experts; ++e) sum += scores_[e] = std::exp(logits[e] - largest);
    for (double& score : scores_) score /= sum;
  }
  choice_ = scores_;
  for (int64_t e = 0; selection_bias_ != nullptr && e < config_.num_experts; ++e) choice_[e] += selection_bias_[e];
  ChooseGroups();
}

void ExpertChoice::ChooseGroups() {
  if (config_.groups_used == config_.num_groups) return;
  const int64_t size = group_size();
  worths_.resize(config_.num_groups);
  for (int64_t group = 0; group < config_.num_groups; ++group) {
    int32_t best[2] = {0, 0};
    const int64_t count = std::min(config_.group_best, size);
    Largest(
        choice_.data() + group * size, size, count, [](int64_t) { return false; }, best);
    worths_[group] = 0;
    for (int64_t i = 0; i < count; ++i) worths_[group] += choice_[group * size + best[i]];
  }
  groups_.resize(config_.groups_used);
  Largest(
      worths_.data(), config_.num_groups, config_.groups_used, [](int64_t) { return false; }, groups_.data());
}

bool ExpertChoice::InUse(int64_t expert) const {
  return config_.groups_used == config_.num_groups ||
         std::find(groups_.begin(), groups_.end(), static_cast<int32_t>(expert / group_size())) != groups_.end();
}

}  // namespace ferry
