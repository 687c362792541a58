// Qwen3-30B-A3B, 235B-A22B and their kin: head norms, no biases, experts in every layer.

#include "common/model/architectures/architectures.h"

namespace ferry {

absl::StatusOr<ModelConfig> ReadQwen3Moe(const ModelKeys& keys) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadBasics(keys));
  ASSIGN_OR_RETURN(AttentionConfig attention, ReadGroupedAttention(keys, config));
  attention.head_norms = true;
  attention.rope.yarn_whole_dims = true;

  RETURN_IF_ERROR(ReadExperts(keys, &config));
  RETURN_IF_ERROR(ReadGate(keys, RouterScore::kSoftmax, &config.router));
  config.layers.assign(config.num_layers, {.attention = attention, .mlp = std::nullopt, .experts = true});
  return config;
}

}  // namespace ferry
