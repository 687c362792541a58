#include "coordinator/prediction.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "common/decode_rows.h"
#include "common/model_tensors.h"

namespace ferry {
namespace {

constexpr int kSamples = 2000;  // probabilities to about one part in a hundred
constexpr uint64_t kSeed = 20;

absl::StatusOr<std::vector<float>> Values(const GgufFile& file, const ModelConfig& config, int64_t layer, TensorRole role) {
  for (const DenseTensor& tensor : DenseTensorsOf(config, layer, layer + 1)) {
    if (tensor.role != role || tensor.layer != layer) continue;
    ASSIGN_OR_RETURN(const TensorInfo* const info, FindDense(config, file, tensor));
    std::vector<float> values(tensor.rows * tensor.cols);
    RETURN_IF_ERROR(DecodeRows(info->dtype, info->data, values));
    return values;
  }
  return Internal("layer %d has no tensor of the role asked for", layer);
}

double LayerFlops(const ModelConfig& config) {  // of the attention matrices, a token
  return 2.0 * static_cast<double>(config.n_embd) * (2.0 * config.q_size() + 2.0 * config.kv_size());
}

}  // namespace

absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config) {
  std::mt19937_64 random(kSeed);
  std::normal_distribution<double> normal;
  std::vector<std::vector<double>> result;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    ASSIGN_OR_RETURN(const std::vector<float> weight, Values(file, config, layer, TensorRole::kRouterWeight));
    ASSIGN_OR_RETURN(const std::vector<float> bias, Values(file, config, layer, TensorRole::kRouterBias));
    ASSIGN_OR_RETURN(const std::vector<float> norm, Values(file, config, layer, TensorRole::kFfnNorm));
    std::vector<double> deviation(config.num_experts);
    for (int64_t e = 0; e < config.num_experts; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < config.n_embd; ++i) sum += std::pow(double{weight[e * config.n_embd + i]} * norm[i], 2);
      deviation[e] = std::sqrt(sum);
    }
    std::vector<double> chosen(config.num_experts, 0), logits(config.num_experts);
    std::vector<int64_t> order(config.num_experts);
    for (int sample = 0; sample < kSamples; ++sample) {
      for (int64_t e = 0; e < config.num_experts; ++e) logits[e] = bias[e] + deviation[e] * normal(random);
      std::iota(order.begin(), order.end(), 0);
      std::nth_element(order.begin(), order.begin() + (config.top_k - 1), order.end(),
                       [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
      for (int64_t i = 0; i < config.top_k; ++i) chosen[order[i]] += 1.0 / kSamples;
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

PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens) {
  PrefillPrediction result{.tokens = tokens};
  const bool gpu = input.rates.link_bytes_per_second > 0;
  const int64_t pass_tokens = std::max<int64_t>(input.placement.cache.max_batch_tokens, 1);
  for (int64_t first = 0; first < tokens; first += pass_tokens) {
    const int64_t pass = std::min(pass_tokens, tokens - first);
    for (int64_t layer = 0; layer < input.config.num_layers; ++layer) {
      const ExpertLayout& expert = input.arena.layer(layer);
      std::vector<ActivatedExpert> uses;
      for (int64_t e = 0; e < input.config.num_experts; ++e) {
        const double p = std::min(input.routing[layer][e], 1.0);
        const double active = 1 - std::pow(1 - p, static_cast<double>(pass));
        if (active < 0.5) continue;  // an expert counts when it is more likely needed than not
        uses.push_back({.expert = static_cast<int32_t>(e),
                        .tokens = std::max<int32_t>(1, static_cast<int32_t>(std::lround(p * static_cast<double>(pass))))});
      }
      const ExpertRule rule = input.placement.expert_rules[layer];
      const ExpertDivision division = DivideExperts(
          {.uses = uses,
           .bytes_per_expert = static_cast<double>(expert.bytes),
           .flops_per_token = static_cast<double>(expert.flops_per_token()),
           .num_slots = input.slots_per_worker,
           .rates = {.link_bytes_per_second = input.rates.link_bytes_per_second,
                     .host_read_bytes_per_second = input.rates.host_read_bytes_per_second,
                     .host_flops_per_second = input.rates.host_flops_per_second},
           .host_allowed = rule != ExpertRule::kDevice,
           .ship_allowed = rule != ExpertRule::kHost});
      double device_flops = LayerFlops(input.config) * static_cast<double>(pass);
      double host_seconds = 0, link_seconds = 0;
      for (size_t i = 0; i < uses.size(); ++i) {
        const double flops = static_cast<double>(uses[i].tokens) * static_cast<double>(expert.flops_per_token());
        if (division.places[i] == ExpertPlace::kHost) {
          host_seconds += std::max(static_cast<double>(expert.bytes) / input.rates.host_read_bytes_per_second,
                                   flops / input.rates.host_flops_per_second);
          result.on_host += 1;
        } else {
          link_seconds += static_cast<double>(expert.bytes) / input.rates.link_bytes_per_second;
          device_flops += flops;
          result.shipped += 1;
          result.bytes_shipped += static_cast<double>(expert.bytes);
        }
      }
      result.activated += static_cast<double>(uses.size());
      const double device_seconds = device_flops / input.rates.device_flops_per_second;
      // Copies run beside everything; on a machine without GPUs the workers and the host share one processor.
      result.seconds += gpu ? std::max({link_seconds, host_seconds, device_seconds}) : host_seconds + device_seconds;
    }
    result.seconds += static_cast<double>(input.placement.workers.size()) * input.rates.step_overhead_seconds;
  }
  return result;
}

DecodePrediction PredictDecode(const PredictionInput& input) {
  DecodePrediction result;
  const bool gpu = input.rates.link_bytes_per_second > 0;
  for (int64_t layer = 0; layer < input.config.num_layers; ++layer) {
    result.host_bytes += static_cast<double>(input.config.top_k * input.arena.layer(layer).bytes);
    result.device_bytes += static_cast<double>(input.sizes.dense_bytes[layer]);
  }
  result.device_bytes += static_cast<double>(input.sizes.output_bytes);
  const double device_seconds =
      result.device_bytes / (gpu ? input.rates.device_read_bytes_per_second : input.rates.host_read_bytes_per_second);
  result.seconds_per_token = result.host_bytes / input.rates.host_read_bytes_per_second + device_seconds +
                             static_cast<double>(input.placement.workers.size()) * input.rates.step_overhead_seconds;
  if (!gpu) result.host_bytes += result.device_bytes, result.device_bytes = 0;
  return result;
}

}  // namespace ferry
