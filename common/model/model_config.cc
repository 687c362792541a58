#include "common/model/model_config.h"

#include <algorithm>

#include "common/gguf/gguf.h"
#include "common/model/architectures/architectures.h"

namespace ferry {
namespace {

std::string KnownArchitectures() {
  std::string names;
  for (const Architecture& known : Architectures()) names += (names.empty() ? "" : ", ") + std::string(known.name);
  return names;
}

}  // namespace

int64_t ModelConfig::sliding_window() const {
  int64_t widest = 0;
  for (const LayerConfig& layer : layers) widest = std::max(widest, layer.attention.window);
  return widest;
}

AttentionWidths AttentionWidthsOf(const AttentionConfig& attention) {
  if (!attention.latent()) {
    const int64_t q = attention.q_size();
    return {.projected = q + 2 * attention.kv_size(), .query = q, .attended = q};
  }
  const int64_t heads = attention.num_heads;
  return {.projected = attention.latent_dim() + attention.q_rank,
          .query = heads * attention.latent_dim(),
          .latent = attention.q_size() + attention.q_rank + heads * attention.kv_rank,
          .attended = attention.out_size()};
}

AttentionWidths Widest(const AttentionWidths& a, const AttentionWidths& b) {
  return {.projected = std::max(a.projected, b.projected),
          .query = std::max(a.query, b.query),
          .latent = std::max(a.latent, b.latent),
          .attended = std::max(a.attended, b.attended)};
}

absl::StatusOr<ModelConfig> ModelConfig::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view type, file.GetStringOr("general.type", "model"));
  if (type != "model") {
    return Unimplemented("%s: key 'general.type' is '%s': Ferry runs whole models, no adapters, projectors or vocabularies",
                         file.path(), type);
  }
  ASSIGN_OR_RETURN(const std::string_view architecture, file.GetString("general.architecture"));
  const uint64_t at = file.FindEntry("general.architecture")->file_offset;
  if (architecture == "gptoss") {
    // Beside the names, the numbers lie differently there: rows of gate and up alternate in one matrix, queries, keys and values
    // are one, MXFP4 has another order of nibbles, and rope.scaling.type is left out although YaRN is meant.
    return Unimplemented(
        "%s: key 'general.architecture' is 'gptoss': this is ollama's own layout of gpt-oss, whose tensors have other "
        "names and another order. Ferry runs the files made for llama.cpp, which say gpt-oss (at byte %d)",
        file.path(), at);
  }
  for (const Architecture& known : Architectures()) {
    if (known.name == architecture) return known.read(ModelKeys(file, std::string(architecture)));
  }
  return Unimplemented("%s: key 'general.architecture' is '%s'; Ferry runs %s (at byte %d)", file.path(), architecture,
                       KnownArchitectures(), at);
}

std::vector<DenseTensor> DenseTensorsOf(const ModelConfig& config, int64_t first_layer, int64_t end_layer) {
  using enum TensorRole;
  const int64_t embd = config.n_embd, experts = config.router.num_experts;
  constexpr bool kMatrix = true, kF32 = false;
  std::vector<DenseTensor> tensors;
  if (first_layer == 0) tensors.push_back({kTokenEmbedding, -1, "token_embd.weight", config.vocab_size, embd, kMatrix});
  for (int64_t layer = first_layer; layer < end_layer; ++layer) {
    const auto add = [&](TensorRole role, std::string_view name, int64_t rows, int64_t cols, bool is_matrix) {
      tensors.push_back({role, layer, absl::StrFormat("blk.%d.%s", layer, name), rows, cols, is_matrix});
    };
    const LayerConfig& parts = config.layers[layer];
    const AttentionConfig& attention = parts.attention;
    const int64_t q = attention.q_size(), kv = attention.kv_size();
    add(kAttentionNorm, "attn_norm.weight", 1, embd, kF32);
    if (attention.latent()) {
      const int64_t heads = attention.num_heads, rank = attention.kv_rank, value = attention.value_dim;
      const auto add_heads = [&](TensorRole role, std::string_view name, int64_t rows, int64_t cols) {
        add(role, name, heads * rows, cols, kMatrix);
        tensors.back().heads = heads;
      };
      if (attention.q_rank > 0) {
        add(kLatentQueryDown, "attn_q_a.weight", attention.q_rank, embd, kMatrix);
        add(kLatentQueryNorm, "attn_q_a_norm.weight", 1, attention.q_rank, kF32);
        add(kLatentQuery, "attn_q_b.weight", q, attention.q_rank, kMatrix);
      } else {
        add(kLatentQuery, "attn_q.weight", q, embd, kMatrix);
      }
      add(kLatentDown, "attn_kv_a_mqa.weight", attention.latent_dim(), embd, kMatrix);
      add(kLatentNorm, "attn_kv_a_norm.weight", 1, rank, kF32);
      if (attention.joined_key_value) {
        add_heads(kLatentKeyAndValueUp, "attn_kv_b.weight", attention.nope_dim() + value, rank);
      } else {
        add_heads(kLatentKeyUp, "attn_k_b.weight", rank, attention.nope_dim());
        add_heads(kLatentValueUp, "attn_v_b.weight", value, rank);
      }
    } else {
      add(kQueryWeight, "attn_q.weight", q, embd, kMatrix);
      if (attention.bias) add(kQueryBias, "attn_q.bias", 1, q, kF32);
      add(kKeyWeight, "attn_k.weight", kv, embd, kMatrix);
      if (attention.bias) add(kKeyBias, "attn_k.bias", 1, kv, kF32);
      add(kValueWeight, "attn_v.weight", kv, embd, kMatrix);
      if (attention.bias) add(kValueBias, "attn_v.bias", 1, kv, kF32);
    }
    if (attention.head_norms) {
      add(kQueryHeadNorm, "attn_q_norm.weight", 1, attention.head_dim, kF32);
      add(kKeyHeadNorm, "attn_k_norm.weight", 1, attention.head_dim, kF32);
    }
    add(kAttentionOutputWeight, "attn_output.weight", embd, attention.out_size(), kMatrix);
    if (attention.output_bias) add(kAttentionOutputBias, "attn_output.bias", 1, embd, kF32);
    if (attention.sinks) add(kAttentionSinks, "attn_sinks.weight", 1, attention.num_heads, kF32);
    add(kFfnNorm, config.ffn_norm + ".weight", 1, embd, kF32);
    if (parts.mlp) {
      const std::string_view end = parts.experts ? "_shexp.weight" : ".weight";
      add(kMlpGate, absl::StrFormat("ffn_gate%s", end), parts.mlp->n_ff, embd, kMatrix);
      add(kMlpUp, absl::StrFormat("ffn_up%s", end), parts.mlp->n_ff, embd, kMatrix);
      add(kMlpDown, absl::StrFormat("ffn_down%s", end), embd, parts.mlp->n_ff, kMatrix);
    }
    if (!parts.experts) continue;
    add(kRouterWeight, "ffn_gate_inp.weight", experts, embd, kF32);
    if (config.router.bias) add(kRouterBias, "ffn_gate_inp.bias", 1, experts, kF32);
    if (config.router.selection_bias) add(kRouterSelectionBias, "exp_probs_b.bias", 1, experts, kF32);
  }
  if (end_layer == config.num_layers) {
    tensors.push_back({kOutputNorm, -1, "output_norm.weight", 1, embd, kF32});
    tensors.push_back({kOutput, -1, "output.weight", config.vocab_size, embd, kMatrix});
  }
  return tensors;
}

}  // namespace ferry
