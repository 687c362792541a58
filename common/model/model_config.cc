#include "common/model/model_config.h"

#include <algorithm>
#include <cmath>

#include "common/gguf/gguf.h"

namespace ferry {
namespace {

// Bounds of what Ferry runs: far above any known model, and small enough that products of two of them stay below 2^63.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxWidth = 1 << 20;  // n_embd, n_ff
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 256;   // the attention kernels hold a head in registers
constexpr int64_t kMaxExperts = 1024;  // the gate kernels hold a token's logits in one warp
constexpr int64_t kMaxVocabulary = 1 << 24;
constexpr int64_t kMaxContext = int64_t{1} << 31;
constexpr int64_t kWidthMultiple = 32;  // elements of a quantised block

// Reads the keys of one architecture, by their names without the prefix.
class Keys {
 public:
  explicit Keys(const GgufFile& file, std::string architecture) : file_(file), architecture_(std::move(architecture)) {}

  std::string Name(std::string_view key) const { return architecture_ + "." + std::string(key); }
  bool Has(std::string_view key) const { return file_.Has(Name(key)); }

  absl::StatusOr<int64_t> Int(std::string_view key, int64_t min, int64_t max) const { return file_.GetInt(Name(key), min, max); }
  // An integer for the whole model, or an array with the same one for every layer.
  absl::StatusOr<int64_t> UniformInt(std::string_view key, int64_t min, int64_t max) const {
    const GgufEntry* const entry = file_.FindEntry(Name(key));
    if (entry == nullptr || entry->type != GgufType::kArray) return Int(key, min, max);
    ASSIGN_OR_RETURN(const std::vector<int64_t> values, file_.GetInts(Name(key), min, max));
    if (values.empty()) return Error(key, "is an empty array");
    if (!std::equal(values.begin() + 1, values.end(), values.begin())) {
      return Unimplemented("%s: key '%s' differs between layers, which Ferry does not run (at byte %d)", file_.path(), Name(key),
                           entry->file_offset);
    }
    return values[0];
  }
  absl::StatusOr<double> Float(std::string_view key, double min, double max) const { return file_.GetFloat(Name(key), min, max); }
  absl::StatusOr<double> FloatOr(std::string_view key, double absent, double min, double max) const {
    return file_.GetFloatOr(Name(key), absent, min, max);
  }
  absl::StatusOr<std::string_view> StringOr(std::string_view key, std::string_view absent) const {
    return file_.GetStringOr(Name(key), absent);
  }

  // InvalidArgument: "model.gguf: key 'gpt-oss.block_count' <what> (at byte 123)".
  absl::Status Error(std::string_view key, std::string_view what) const {
    const GgufEntry* const entry = file_.FindEntry(Name(key));
    if (entry == nullptr) return InvalidArgument("%s: key '%s' %s", file_.path(), Name(key), what);
    return InvalidArgument("%s: key '%s' %s (at byte %d)", file_.path(), Name(key), what, entry->file_offset);
  }
  absl::Status CheckMultiple(std::string_view key, int64_t value, int64_t of) const {
    if (value % of == 0) return absl::OkStatus();
    return Error(key, absl::StrFormat("is %d, want a multiple of %d", value, of));
  }

 private:
  const GgufFile& file_;
  const std::string architecture_;
};

absl::StatusOr<int64_t> VocabularySize(const GgufFile& file, const Keys& keys) {
  if (const GgufEntry* tokens = file.FindEntry("tokenizer.ggml.tokens")) {
    if (tokens->type != GgufType::kArray || tokens->element_type != GgufType::kString || tokens->count == 0 ||
        tokens->count > kMaxVocabulary) {
      return InvalidArgument("%s: key 'tokenizer.ggml.tokens' is not an array of 1 to %d strings (at byte %d)", file.path(),
                             kMaxVocabulary, tokens->file_offset);
    }
    return static_cast<int64_t>(tokens->count);
  }
  if (const TensorInfo* embedding = file.FindTensor("token_embd.weight")) {
    if (embedding->rows() > kMaxVocabulary) {
      return InvalidArgument("%s: tensor 'token_embd.weight' has %d rows, at most %d are allowed", file.path(), embedding->rows(),
                             kMaxVocabulary);
    }
    return embedding->rows();
  }
  return keys.Int("vocab_size", 1, kMaxVocabulary);
}

absl::StatusOr<RopeConfig> ReadRope(const Keys& keys, int64_t head_dim) {
  RopeConfig rope;
  ASSIGN_OR_RETURN(rope.freq_base, keys.Float("rope.freq_base", 1, 1e12));
  rope.num_dims = head_dim;
  if (keys.Has("rope.dimension_count")) {
    ASSIGN_OR_RETURN(rope.num_dims, keys.Int("rope.dimension_count", 2, head_dim));
  }
  if (rope.num_dims % 2 != 0) {
    return keys.Error("rope.dimension_count", absl::StrFormat("is %d, want an even number", rope.num_dims));
  }
  ASSIGN_OR_RETURN(rope.attention_factor, keys.FloatOr("rope.scaling.attn_factor", 1, 1e-3, 1e3));

  ASSIGN_OR_RETURN(const std::string_view scaling, keys.StringOr("rope.scaling.type", "none"));
  if (scaling == "none") return rope;
  if (scaling != "yarn") {
    return Unimplemented("key '%s' is '%s'; Ferry runs none and yarn", keys.Name("rope.scaling.type"), scaling);
  }
  ASSIGN_OR_RETURN(rope.yarn_factor, keys.Float("rope.scaling.factor", 1, 1e6));
  ASSIGN_OR_RETURN(rope.yarn_original_context, keys.Int("rope.scaling.original_context_length", 1, kMaxContext));
  ASSIGN_OR_RETURN(rope.yarn_beta_fast, keys.FloatOr("rope.scaling.yarn_beta_fast", rope.yarn_beta_fast, 1e-3, 1e6));
  ASSIGN_OR_RETURN(rope.yarn_beta_slow, keys.FloatOr("rope.scaling.yarn_beta_slow", rope.yarn_beta_slow, 1e-3, 1e6));
  rope.attention_factor *= 0.1 * std::log(rope.yarn_factor) + 1;
  return rope;
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromGguf(const GgufFile& file) {
  ModelConfig config;
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
  if (architecture != "gpt-oss") {
    return Unimplemented("%s: key 'general.architecture' is '%s'; Ferry runs gpt-oss (at byte %d)", file.path(), architecture,
                         at);
  }
  const Keys keys(file, std::string(architecture));
  config.architecture = "gpt-oss";
  ASSIGN_OR_RETURN(const std::string_view name, file.GetStringOr("general.name", ""));
  config.name = name;

  ASSIGN_OR_RETURN(config.num_layers, keys.Int("block_count", 1, kMaxLayers));
  ASSIGN_OR_RETURN(config.context_length, keys.Int("context_length", 1, kMaxContext));
  ASSIGN_OR_RETURN(config.n_embd, keys.Int("embedding_length", 1, kMaxWidth));
  RETURN_IF_ERROR(keys.CheckMultiple("embedding_length", config.n_embd, kWidthMultiple));
  ASSIGN_OR_RETURN(config.vocab_size, VocabularySize(file, keys));

  ASSIGN_OR_RETURN(config.num_heads, keys.UniformInt("attention.head_count", 1, kMaxHeads));
  config.num_kv_heads = config.num_heads;
  if (keys.Has("attention.head_count_kv")) {
    ASSIGN_OR_RETURN(config.num_kv_heads, keys.UniformInt("attention.head_count_kv", 1, config.num_heads));
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return keys.Error("attention.head_count_kv",
                      absl::StrFormat("is %d, want a divisor of the %d heads", config.num_kv_heads, config.num_heads));
  }
  if (keys.Has("attention.key_length")) {
    ASSIGN_OR_RETURN(config.head_dim, keys.Int("attention.key_length", 2, kMaxHeadDim));
  } else {
    RETURN_IF_ERROR(keys.CheckMultiple("embedding_length", config.n_embd, config.num_heads));
    config.head_dim = config.n_embd / config.num_heads;
    if (config.head_dim < 2 || config.head_dim > kMaxHeadDim) {
      return keys.Error("attention.head_count", absl::StrFormat("makes heads of %d, want 2 to %d", config.head_dim, kMaxHeadDim));
    }
  }
  RETURN_IF_ERROR(keys.CheckMultiple("attention.key_length", config.head_dim, 2));
  // Rows of the output projection are whole quantised blocks.
  if (config.q_size() % kWidthMultiple != 0) {
    return keys.Error("attention.head_count", absl::StrFormat("is %d heads of %d, want a product that is a multiple of %d",
                                                              config.num_heads, config.head_dim, kWidthMultiple));
  }
  if (keys.Has("attention.value_length")) {
    RETURN_IF_ERROR(keys.Int("attention.value_length", config.head_dim, config.head_dim).status());
  }
  ASSIGN_OR_RETURN(config.sliding_window, keys.Int("attention.sliding_window", 0, kMaxContext));
  ASSIGN_OR_RETURN(config.rms_epsilon, keys.Float("attention.layer_norm_rms_epsilon", 1e-12, 0.1));

  ASSIGN_OR_RETURN(config.num_experts, keys.Int("expert_count", 1, kMaxExperts));
  ASSIGN_OR_RETURN(config.top_k, keys.Int("expert_used_count", 1, config.num_experts));
  const std::string_view n_ff_key = keys.Has("expert_feed_forward_length") ? "expert_feed_forward_length" : "feed_forward_length";
  ASSIGN_OR_RETURN(config.n_ff, keys.UniformInt(n_ff_key, 1, kMaxWidth));
  RETURN_IF_ERROR(keys.CheckMultiple(n_ff_key, config.n_ff, kWidthMultiple));

  ASSIGN_OR_RETURN(config.rope, ReadRope(keys, config.head_dim));
  return config;
}

std::vector<DenseTensor> DenseTensorsOf(const ModelConfig& config, int64_t first_layer, int64_t end_layer) {
  using enum TensorRole;
  const int64_t embd = config.n_embd, q = config.q_size(), kv = config.kv_size(), experts = config.num_experts;
  constexpr bool kMatrix = true, kF32 = false;
  std::vector<DenseTensor> tensors;
  if (first_layer == 0) tensors.push_back({kTokenEmbedding, -1, "token_embd.weight", config.vocab_size, embd, kMatrix});
  for (int64_t layer = first_layer; layer < end_layer; ++layer) {
    const auto add = [&](TensorRole role, std::string_view name, int64_t rows, int64_t cols, bool is_matrix) {
      tensors.push_back({role, layer, absl::StrFormat("blk.%d.%s", layer, name), rows, cols, is_matrix});
    };
    add(kAttentionNorm, "attn_norm.weight", 1, embd, kF32);
    add(kQueryWeight, "attn_q.weight", q, embd, kMatrix);
    add(kQueryBias, "attn_q.bias", 1, q, kF32);
    add(kKeyWeight, "attn_k.weight", kv, embd, kMatrix);
    add(kKeyBias, "attn_k.bias", 1, kv, kF32);
    add(kValueWeight, "attn_v.weight", kv, embd, kMatrix);
    add(kValueBias, "attn_v.bias", 1, kv, kF32);
    add(kAttentionOutputWeight, "attn_output.weight", embd, q, kMatrix);
    add(kAttentionOutputBias, "attn_output.bias", 1, embd, kF32);
    add(kAttentionSinks, "attn_sinks.weight", 1, config.num_heads, kF32);
    add(kFfnNorm, "post_attention_norm.weight", 1, embd, kF32);
    add(kRouterWeight, "ffn_gate_inp.weight", experts, embd, kF32);
    add(kRouterBias, "ffn_gate_inp.bias", 1, experts, kF32);
  }
  if (end_layer == config.num_layers) {
    tensors.push_back({kOutputNorm, -1, "output_norm.weight", 1, embd, kF32});
    tensors.push_back({kOutput, -1, "output.weight", config.vocab_size, embd, kMatrix});
  }
  return tensors;
}

}  // namespace ferry
