// DeepSeek-V2, V2-Lite, V3, R1 and V3.1, Kimi-K2, GLM-4.7-Flash: latent attention, leading dense layers, shared experts, groups.

#include <cmath>

#include "common/model/architectures/architectures.h"
#include "common/model/limits.h"

namespace ferry {
namespace {

absl::StatusOr<AttentionConfig> ReadLatentAttention(const ModelKeys& keys) {
  AttentionConfig attention;
  attention.kind = AttentionKind::kLatent;
  ASSIGN_OR_RETURN(attention.num_heads, keys.UniformInt("attention.head_count", 1, kMaxHeads));
  attention.num_kv_heads = 1;
  // Files with the matrices for keys and values apart give the sizes of a head under names of their own.
  const bool apart = keys.Has("attention.key_length_mla");
  const std::string_view key = apart ? "attention.key_length_mla" : "attention.key_length";
  const std::string_view value = apart ? "attention.value_length_mla" : "attention.value_length";
  ASSIGN_OR_RETURN(attention.head_dim, keys.Int(key, 4, kMaxLatentHeadDim));
  ASSIGN_OR_RETURN(attention.value_dim, keys.Int(value, 1, kMaxLatentHeadDim));
  ASSIGN_OR_RETURN(attention.kv_rank, keys.Int("attention.kv_lora_rank", 1, kMaxLatentRank));
  RETURN_IF_ERROR(keys.CheckMultiple("attention.kv_lora_rank", attention.kv_rank, kInnerWidthMultiple));
  ASSIGN_OR_RETURN(attention.q_rank, keys.IntOr("attention.q_lora_rank", 0, 0, kMaxLatentRank));
  RETURN_IF_ERROR(keys.CheckMultiple("attention.q_lora_rank", attention.q_rank, kInnerWidthMultiple));
  attention.joined_key_value = !apart && !HasTensor(keys, 0, "attn_k_b.weight");

  ASSIGN_OR_RETURN(const int64_t rotated, keys.Int("rope.dimension_count", 2, attention.head_dim - 1));
  ASSIGN_OR_RETURN(attention.rope, ReadRope(keys, rotated));
  RETURN_IF_ERROR(keys.CheckMultiple("rope.dimension_count", rotated, 16));
  RETURN_IF_ERROR(keys.CheckMultiple(key, attention.nope_dim(), kInnerWidthMultiple));
  if (attention.out_size() % kInnerWidthMultiple != 0) {
    return keys.Error(value, absl::StrFormat("is %d for %d heads, want a product that is a multiple of %d", attention.value_dim,
                                             attention.num_heads, kInnerWidthMultiple));
  }
  attention.rope.neighbours = true;
  attention.rope.yarn_whole_dims = true;
  // YaRN sharpens the scores here and leaves cosine and sine alone.
  double sharpened = 1;
  if (attention.rope.yarn_factor != 1) {
    ASSIGN_OR_RETURN(const double multiplier, keys.FloatOr("rope.scaling.yarn_log_multiplier", 0, 0, 10));
    sharpened = 1 + multiplier * std::log(attention.rope.yarn_factor);
  }
  attention.rope.attention_factor = 1;
  attention.scale = sharpened * sharpened / std::sqrt(static_cast<double>(attention.head_dim));
  return attention;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadDeepseek2(const ModelKeys& keys) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadBasics(keys));
  ASSIGN_OR_RETURN(const AttentionConfig attention, ReadLatentAttention(keys));
  RETURN_IF_ERROR(ReadExperts(keys, &config));
  config.router.normalise = false;  // where the file does not say
  RETURN_IF_ERROR(ReadGate(keys, RouterScore::kSoftmax, &config.router));
  config.router.selection_bias = config.router.score == RouterScore::kSigmoid;
  RETURN_IF_ERROR(ReadLayersWithDenseOnes(keys, attention, &config));
  return config;
}

}  // namespace ferry
