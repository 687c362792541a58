// gpt-oss-20b and 120b: sinks, biases everywhere, even layers slide.

#include "common/model/architectures/architectures.h"

namespace ferry {

absl::StatusOr<ModelConfig> ReadGptOss(const ModelKeys& keys) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadBasics(keys));
  config.ffn_norm = "post_attention_norm";
  ASSIGN_OR_RETURN(AttentionConfig attention, ReadGroupedAttention(keys, config));
  ASSIGN_OR_RETURN(const int64_t window, keys.Int("attention.sliding_window", 0, INT64_C(1) << 31));
  attention.bias = attention.output_bias = attention.sinks = true;

  RETURN_IF_ERROR(ReadExperts(keys, &config));
  RETURN_IF_ERROR(ReadGate(keys, RouterScore::kSoftmax, &config.router));
  config.router.bias = true;
  config.expert.bias = true;
  config.expert.glu = {.alpha = 1.702, .limit = 7, .up_offset = 1};

  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    attention.window = layer % 2 == 0 ? window : 0;
    config.layers.push_back({.attention = attention, .mlp = std::nullopt, .experts = true});
  }
  return config;
}

}  // namespace ferry
