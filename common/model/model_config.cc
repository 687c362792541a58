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

bool ModelConfig::keeps_states() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerConfig& layer) { return layer.attention.delta(); });
}

AttentionWidths AttentionWidthsOf(const AttentionConfig& attention) {
  const int64_t q = attention.q_size();
  if (attention.delta()) return {.projected = attention.conv_channels() + q + 2 * attention.num_heads, .attended = q};
  if (!attention.latent()) {
    return {.projected = q + 2 * attention.kv_size() + (attention.output_gate ? q : 0), .query = q, .attended = q};
  }
  const int64_t heads = attention.num_heads;
  return {.projected = attention.latent_dim() + attention.q_rank,
          .query = heads * attention.latent_dim(),
          .latent = q + attention.q_rank + heads * attention.kv_rank,
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

namespace {

constexpr bool kMatrix = true, kF32 = false;  // DenseTensor::is_matrix

// Appends the dense tensors of one layer.
class LayerTensors {
 public:
  LayerTensors(const ModelConfig& config, int64_t layer, std::vector<DenseTensor>* out)
      : config_(config), layer_(layer), parts_(config.layers[layer]), embd_(config.n_embd), out_(*out) {}

  void AddAll() {
    const AttentionConfig& attention = parts_.attention;
    Add(TensorRole::kAttentionNorm, "attn_norm.weight", 1, embd_, kF32);
    if (attention.delta()) {
      AddGatedDelta();
    } else if (attention.latent()) {
      AddLatentAttention();
    } else {
      AddQueryKeyValue();
    }
    if (attention.head_norms) {
      Add(TensorRole::kQueryHeadNorm, "attn_q_norm.weight", 1, attention.head_dim, kF32);
      Add(TensorRole::kKeyHeadNorm, "attn_k_norm.weight", 1, attention.head_dim, kF32);
    }
    const std::string_view output = attention.delta() ? "ssm_out.weight" : "attn_output.weight";
    Add(TensorRole::kAttentionOutputWeight, output, embd_, attention.out_size(), kMatrix);
    if (attention.output_bias) Add(TensorRole::kAttentionOutputBias, "attn_output.bias", 1, embd_, kF32);
    if (attention.sinks) Add(TensorRole::kAttentionSinks, "attn_sinks.weight", 1, attention.num_heads, kF32);
    Add(TensorRole::kFfnNorm, config_.ffn_norm + ".weight", 1, embd_, kF32);
    if (parts_.mlp) AddMlp();
    if (parts_.experts) AddRouter();
  }

 private:
  void Add(TensorRole role, std::string_view name, int64_t rows, int64_t cols, bool is_matrix) {
    out_.push_back({role, layer_, absl::StrFormat("blk.%d.%s", layer_, name), rows, cols, is_matrix});
  }
  // A matrix of `rows` rows for each head.
  void AddHeads(TensorRole role, std::string_view name, int64_t rows, int64_t cols) {
    Add(role, name, parts_.attention.num_heads * rows, cols, kMatrix);
    out_.back().heads = parts_.attention.num_heads;
  }

  void AddQueryKeyValue() {
    const AttentionConfig& attention = parts_.attention;
    const int64_t q = attention.q_size(), kv = attention.kv_size();
    Add(TensorRole::kQueryWeight, "attn_q.weight", attention.output_gate ? 2 * q : q, embd_, kMatrix);
    if (attention.bias) Add(TensorRole::kQueryBias, "attn_q.bias", 1, q, kF32);
    Add(TensorRole::kKeyWeight, "attn_k.weight", kv, embd_, kMatrix);
    if (attention.bias) Add(TensorRole::kKeyBias, "attn_k.bias", 1, kv, kF32);
    Add(TensorRole::kValueWeight, "attn_v.weight", kv, embd_, kMatrix);
    if (attention.bias) Add(TensorRole::kValueBias, "attn_v.bias", 1, kv, kF32);
  }

  void AddLatentAttention() {
    const AttentionConfig& attention = parts_.attention;
    const int64_t rank = attention.kv_rank;
    if (attention.q_rank > 0) {
      Add(TensorRole::kLatentQueryDown, "attn_q_a.weight", attention.q_rank, embd_, kMatrix);
      Add(TensorRole::kLatentQueryNorm, "attn_q_a_norm.weight", 1, attention.q_rank, kF32);
      Add(TensorRole::kLatentQuery, "attn_q_b.weight", attention.q_size(), attention.q_rank, kMatrix);
    } else {
      Add(TensorRole::kLatentQuery, "attn_q.weight", attention.q_size(), embd_, kMatrix);
    }
    Add(TensorRole::kLatentDown, "attn_kv_a_mqa.weight", attention.latent_dim(), embd_, kMatrix);
    Add(TensorRole::kLatentNorm, "attn_kv_a_norm.weight", 1, rank, kF32);
    if (attention.joined_key_value) {
      AddHeads(TensorRole::kLatentKeyAndValueUp, "attn_kv_b.weight", attention.nope_dim() + attention.value_dim, rank);
    } else {
      AddHeads(TensorRole::kLatentKeyUp, "attn_k_b.weight", rank, attention.nope_dim());
      AddHeads(TensorRole::kLatentValueUp, "attn_v_b.weight", attention.value_dim, rank);
    }
  }

  void AddGatedDelta() {
    const AttentionConfig& net = parts_.attention;
    const int64_t heads = net.num_heads, channels = net.conv_channels();
    if (net.joined_input) {
      Add(TensorRole::kDeltaInput, "ssm_in.weight", channels + net.q_size(), embd_, kMatrix);
    } else {
      Add(TensorRole::kDeltaMixed, "attn_qkv.weight", channels, embd_, kMatrix);
      Add(TensorRole::kDeltaGate, "attn_gate.weight", net.q_size(), embd_, kMatrix);
    }
    if (net.joined_decay) {
      Add(TensorRole::kDeltaBetaAndAlpha, "ssm_ba.weight", 2 * heads, embd_, kMatrix);
    } else {
      Add(TensorRole::kDeltaBeta, "ssm_beta.weight", heads, embd_, kMatrix);
      Add(TensorRole::kDeltaAlpha, "ssm_alpha.weight", heads, embd_, kMatrix);
    }
    Add(TensorRole::kDeltaConv, "ssm_conv1d.weight", channels, net.conv_taps, kF32);
    Add(TensorRole::kDeltaTimeBias, "ssm_dt.bias", 1, heads, kF32);
    Add(TensorRole::kDeltaDecay, "ssm_a", 1, heads, kF32);
    Add(TensorRole::kDeltaNorm, "ssm_norm.weight", 1, net.head_dim, kF32);
  }

  void AddMlp() {
    const std::string_view end = parts_.experts ? "_shexp.weight" : ".weight";
    Add(TensorRole::kMlpGate, absl::StrFormat("ffn_gate%s", end), parts_.mlp->n_ff, embd_, kMatrix);
    Add(TensorRole::kMlpUp, absl::StrFormat("ffn_up%s", end), parts_.mlp->n_ff, embd_, kMatrix);
    Add(TensorRole::kMlpDown, absl::StrFormat("ffn_down%s", end), embd_, parts_.mlp->n_ff, kMatrix);
    if (parts_.mlp->gated) Add(TensorRole::kMlpOutputGate, "ffn_gate_inp_shexp.weight", 1, embd_, kMatrix);
  }

  void AddRouter() {
    const int64_t experts = config_.router.num_experts;
    Add(TensorRole::kRouterWeight, "ffn_gate_inp.weight", experts, embd_, kF32);
    if (config_.router.bias) Add(TensorRole::kRouterBias, "ffn_gate_inp.bias", 1, experts, kF32);
    if (config_.router.selection_bias) Add(TensorRole::kRouterSelectionBias, "exp_probs_b.bias", 1, experts, kF32);
  }

  const ModelConfig& config_;
  const int64_t layer_;
  const LayerConfig& parts_;
  const int64_t embd_;
  std::vector<DenseTensor>& out_;
};

}  // namespace

std::vector<DenseTensor> DenseTensorsOf(const ModelConfig& config, int64_t first_layer, int64_t end_layer) {
  using enum TensorRole;
  std::vector<DenseTensor> tensors;
  if (first_layer == 0) tensors.push_back({kTokenEmbedding, -1, "token_embd.weight", config.vocab_size, config.n_embd, kMatrix});
  for (int64_t layer = first_layer; layer < end_layer; ++layer) LayerTensors(config, layer, &tensors).AddAll();
  if (end_layer == config.num_layers) {
    tensors.push_back({kOutputNorm, -1, "output_norm.weight", 1, config.n_embd, kF32});
    tensors.push_back({kOutput, -1, "output.weight", config.vocab_size, config.n_embd, kMatrix});
  }
  return tensors;
}

}  // namespace ferry
