// Qwen3-Next and Qwen3-Coder-Next (qwen3next), Qwen3.5 and 3.6 with experts (qwen35moe): gated delta nets, some layers with full
// attention whose output is gated, experts and a gated shared expert in every layer.

#include "common/model/architectures/architectures.h"
#include "common/model/limits.h"

namespace ferry {
namespace {

absl::StatusOr<AttentionConfig> ReadDelta(const ModelKeys& keys) {
  AttentionConfig net;
  net.kind = AttentionKind::kGatedDelta;
  ASSIGN_OR_RETURN(net.head_dim, keys.Int("ssm.state_size", kInnerWidthMultiple, kMaxHeadDim));
  RETURN_IF_ERROR(keys.CheckMultiple("ssm.state_size", net.head_dim, kInnerWidthMultiple));
  ASSIGN_OR_RETURN(net.num_kv_heads, keys.Int("ssm.group_count", 1, kMaxHeads));
  ASSIGN_OR_RETURN(net.num_heads, keys.Int("ssm.time_step_rank", 1, kMaxHeads));
  RETURN_IF_ERROR(keys.CheckMultiple("ssm.time_step_rank", net.num_heads, net.num_kv_heads));
  RETURN_IF_ERROR(keys.Int("ssm.inner_size", net.q_size(), net.q_size()).status());
  ASSIGN_OR_RETURN(net.conv_taps, keys.Int("ssm.conv_kernel", 2, kMaxConvTaps));
  return net;
}

// Of every layer, whether it is a delta net.
absl::StatusOr<std::vector<bool>> ReadKinds(const ModelKeys& keys, const ModelConfig& config) {
  constexpr std::string_view kArray = "attention.recurrent_layers";
  std::vector<bool> delta(config.num_layers);
  if (keys.Has(kArray)) {
    const GgufEntry& entry = *keys.file().FindEntry(keys.Name(kArray));
    const int64_t blocks = config.num_layers + config.num_unused_layers;
    if (entry.type != GgufType::kArray || entry.element_type != GgufType::kBool || entry.count != static_cast<uint64_t>(blocks)) {
      return keys.Error(kArray, absl::StrFormat("is not an array of %d bools, one a layer", blocks));
    }
    for (int64_t layer = 0; layer < config.num_layers; ++layer) delta[layer] = entry.value[layer] != std::byte{0};
    return delta;
  }
  ASSIGN_OR_RETURN(const int64_t interval, keys.IntOr("full_attention_interval", 4, 1, 1 << 20));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) delta[layer] = (layer + 1) % interval != 0;
  return delta;
}

// `tiled`: the order of value heads, and beta and alpha in tensors of their own.
absl::StatusOr<ModelConfig> Read(const ModelKeys& keys, bool tiled) {
  ASSIGN_OR_RETURN(ModelConfig config, ReadBasics(keys));
  config.ffn_norm = "post_attention_norm";
  // rope.dimension_sections divides the rotation among time, height and width of images, which are one position for text.
  ASSIGN_OR_RETURN(AttentionConfig full, ReadGroupedAttention(keys, config));
  full.head_norms = full.output_gate = true;
  full.rope.yarn_whole_dims = true;
  ASSIGN_OR_RETURN(AttentionConfig net, ReadDelta(keys));
  net.tiled_heads = tiled;
  net.joined_decay = !tiled;

  RETURN_IF_ERROR(ReadExperts(keys, &config));
  RETURN_IF_ERROR(ReadGate(keys, RouterScore::kSoftmax, &config.router));
  MlpConfig shared = {.gated = true};
  ASSIGN_OR_RETURN(shared.n_ff, keys.Int("expert_shared_feed_forward_length", 1, kMaxWidth));
  RETURN_IF_ERROR(keys.CheckMultiple("expert_shared_feed_forward_length", shared.n_ff, kInnerWidthMultiple));
  ASSIGN_OR_RETURN(const std::vector<bool> kinds, ReadKinds(keys, config));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    net.joined_input = HasTensor(keys, layer, "ssm_in.weight");
    config.layers.push_back({.attention = kinds[layer] ? net : full, .mlp = shared, .experts = true});
  }
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadQwen3Next(const ModelKeys& keys) { return Read(keys, /*tiled=*/false); }
absl::StatusOr<ModelConfig> ReadQwen35Moe(const ModelKeys& keys) { return Read(keys, /*tiled=*/true); }

}  // namespace ferry
