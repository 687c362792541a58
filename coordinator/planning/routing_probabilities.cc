#include "coordinator/planning/routing_probabilities.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <random>
#include <tuple>
#include <utility>

#include "common/model/decode_rows.h"
#include "common/model/model_tensors.h"

namespace ferry {
namespace {

constexpr int kSamples = 500;  // of the others' logits: an expert used once in 10,000 tokens still has its probability
constexpr uint64_t kSeed = 20;

absl::StatusOr<std::vector<float>> Values(const GgufFile& file, const ModelConfig& config, int64_t layer, TensorRole role) {
  for (const DenseTensor& tensor : DenseTensorsOf(config, layer, layer + 1)) {
    if (tensor.role != role || tensor.layer != layer) continue;
    ASSIGN_OR_RETURN(const TensorInfo* const info, FindDense(config, file, tensor));
    std::vector<float> values(tensor.rows * tensor.cols);
    RETURN_IF_ERROR(DecodeRows(info->dtype, tensor.cols, info->data, values));
    return values;
  }
  return Internal("layer %d has no tensor of the role asked for", layer);
}

// The part of a router's input that the tokens of a text share grows with depth, and with it the same experts are used more
// often. Fitted to the experts that generated models activated on an H100: 540, 789, 855 and 985 of 12 x 128 with 310 to 16,384
// tokens (574, 796, 871, 1,004 by this), 475, 565 and 620 of 24 x 32 with 512 to 32,768 (495, 569, 641). Without it 917 instead
// of 855.
double CommonShare(int64_t layer) {
  const double depth = static_cast<double>(layer) / 22;
  return std::min(0.6, depth * depth);
}
}  // namespace

absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config) {
  std::mt19937_64 random(kSeed);
  std::normal_distribution<double> normal;
  const int64_t num_experts = config.router.num_experts, top_k = config.router.top_k;
  std::vector<std::vector<double>> result;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].experts) {
      result.emplace_back();
      continue;
    }
    ASSIGN_OR_RETURN(const std::vector<float> weight, Values(file, config, layer, TensorRole::kRouterWeight));
    ASSIGN_OR_RETURN(const std::vector<float> norm, Values(file, config, layer, TensorRole::kFfnNorm));
    // A bias on the scores, whose slope is at most a quarter in the logit, counts as one on the logits four times as large.
    std::vector<double> middle(num_experts, 0);
    for (const auto& [has, role, factor] : {std::tuple{config.router.bias, TensorRole::kRouterBias, 1.0},
                                            std::tuple{config.router.selection_bias, TensorRole::kRouterSelectionBias, 4.0}}) {
      if (!has) continue;
      ASSIGN_OR_RETURN(const std::vector<float> bias, Values(file, config, layer, role));
      for (int64_t e = 0; e < num_experts; ++e) middle[e] += factor * bias[e];
    }
    std::vector<double> deviation(num_experts);
    for (int64_t e = 0; e < num_experts; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < config.n_embd; ++i) sum += std::pow(double{weight[e * config.n_embd + i]} * norm[i], 2);
      deviation[e] = std::sqrt(sum);
    }
    // What all tokens have in common moves the experts as a bias does.
    const double common = CommonShare(layer);
    for (int64_t e = 0; e < num_experts; ++e) {
      middle[e] += std::sqrt(common) * deviation[e] * normal(random);
      deviation[e] *= std::sqrt(1 - common);
    }
    if (top_k == num_experts) {
      result.emplace_back(num_experts, 1.0);
      continue;
    }
    std::vector<double> chosen(num_experts, 0), logits(num_experts), sorted;
    for (int sample = 0; sample < kSamples; ++sample) {
      for (int64_t e = 0; e < num_experts; ++e) logits[e] = middle[e] + deviation[e] * normal(random);
      // Against the top_k-th best of the others' logits an expert wins with a probability that needs no sampling of its own.
      sorted = logits;
      std::nth_element(sorted.begin(), sorted.begin() + top_k, sorted.end(), std::greater<>());
      const double next = sorted[top_k];
      const double last = *std::min_element(sorted.begin(), sorted.begin() + top_k);
      for (int64_t e = 0; e < num_experts; ++e) {
        const double bar = logits[e] >= last ? next : last;
        chosen[e] += 0.5 * std::erfc((bar - middle[e]) / (std::numbers::sqrt2 * std::max(deviation[e], 1e-9))) / kSamples;
      }
    }
    result.push_back(std::move(chosen));
  }
  return result;
}

double ExpectedActivated(const std::vector<double>& probabilities, int64_t tokens) {
  double sum = 0;
  for (const double p : probabilities) sum += 1 - std::pow(1 - std::min(p, 1.0), static_cast<double>(tokens));
  return sum;
}
}  // namespace ferry
