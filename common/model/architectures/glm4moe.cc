// GLM-4.5-Air, 4.5, 4.6, 4.7: biases of queries, keys and values, half of a head rotated, head norms in the large ones, leading
// dense layers, a shared expert, sigmoid router.

#include "common/model/architectures/architectures.h"

namespace ferry {

absl::StatusOr<ModelConfig> ReadGlm4Moe(const ModelKeys& keys) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadBasics(keys));
  config.ffn_norm = "post_attention_norm";
  ASSIGN_OR_RETURN(AttentionConfig attention, ReadGroupedAttention(keys, config));
  attention.bias = true;
  attention.head_norms = HasTensor(keys, 0, "attn_q_norm.weight");
  attention.rope.yarn_whole_dims = true;

  RETURN_IF_ERROR(ReadExperts(keys, &config));
  RETURN_IF_ERROR(ReadGate(keys, RouterScore::kSigmoid, &config.router));
  config.router.selection_bias = config.router.score == RouterScore::kSigmoid;
  RETURN_IF_ERROR(ReadLayersWithDenseOnes(keys, attention, &config));
  return config;
}

}  // namespace ferry
