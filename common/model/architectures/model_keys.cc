#include "common/model/architectures/model_keys.h"

#include <algorithm>
#include <cmath>

#include "common/model/limits.h"

namespace ferry {
namespace {

absl::StatusOr<int64_t> VocabularySize(const ModelKeys& keys) {
  const GgufFile& file = keys.file();
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

// Keys of llama.cpp's that change what a model computes, which no architecture in the table has, and the value that changes
// nothing.
absl::Status RefuseUnknownArithmetic(const ModelKeys& keys) {
  for (const auto& [key, neutral] :
       {std::pair{"attention.max_alibi_bias", 0.0}, std::pair{"attention.clamp_kqv", 0.0},
        std::pair{"attn_logit_softcapping", 0.0}, std::pair{"final_logit_softcapping", 0.0}, std::pair{"logit_scale", 1.0},
        std::pair{"residual_scale", 1.0}, std::pair{"embedding_scale", 1.0}, std::pair{"attention.scale", 0.0}}) {
    RETURN_IF_ERROR(keys.RefuseUnless(key, neutral));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> ModelKeys::UniformInt(std::string_view key, int64_t min, int64_t max) const {
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

absl::StatusOr<double> ModelKeys::Float(std::string_view key, double min, double max) const {
  const GgufEntry* const entry = file_.FindEntry(Name(key));
  const bool integer = entry != nullptr &&
                       (entry->type <= GgufType::kInt32 || entry->type == GgufType::kUint64 || entry->type == GgufType::kInt64);
  if (!integer) return file_.GetFloat(Name(key), min, max);
  const auto bound = [](double limit) { return static_cast<int64_t>(std::clamp(limit, -9e18, 9e18)); };
  ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(Name(key), bound(std::ceil(min)), bound(std::floor(max))));
  return static_cast<double>(value);
}

absl::Status ModelKeys::Error(std::string_view key, std::string_view what) const {
  const GgufEntry* const entry = file_.FindEntry(Name(key));
  if (entry == nullptr) return InvalidArgument("%s: key '%s' %s", file_.path(), Name(key), what);
  return InvalidArgument("%s: key '%s' %s (at byte %d)", file_.path(), Name(key), what, entry->file_offset);
}

absl::Status ModelKeys::CheckMultiple(std::string_view key, int64_t value, int64_t of) const {
  if (value % of == 0) return absl::OkStatus();
  return Error(key, absl::StrFormat("is %d, want a multiple of %d", value, of));
}

absl::Status ModelKeys::RefuseUnless(std::string_view key, double neutral) const {
  if (!Has(key)) return absl::OkStatus();
  const double infinity = std::numeric_limits<double>::infinity();
  ASSIGN_OR_RETURN(const double value, Float(key, -infinity, infinity));
  if (value == neutral) return absl::OkStatus();
  return Unimplemented("%s: key '%s' is %g, which Ferry does not compute with; it runs models without it (at byte %d)",
                       file_.path(), Name(key), value, file_.FindEntry(Name(key))->file_offset);
}

absl::StatusOr<ModelConfig> ReadBasics(const ModelKeys& keys) {
  ModelConfig config;
  ASSIGN_OR_RETURN(const std::string_view architecture, keys.file().GetString("general.architecture"));
  ASSIGN_OR_RETURN(const std::string_view name, keys.file().GetStringOr("general.name", ""));
  config.architecture = architecture;
  config.name = name;
  ASSIGN_OR_RETURN(const int64_t blocks, keys.Int("block_count", 1, kMaxLayers));
  ASSIGN_OR_RETURN(config.num_unused_layers, keys.IntOr("nextn_predict_layers", 0, 0, blocks - 1));
  config.num_layers = blocks - config.num_unused_layers;
  ASSIGN_OR_RETURN(config.context_length, keys.Int("context_length", 1, kMaxContext));
  ASSIGN_OR_RETURN(config.n_embd, keys.Int("embedding_length", 1, kMaxWidth));
  RETURN_IF_ERROR(keys.CheckMultiple("embedding_length", config.n_embd, kWidthMultiple));
  ASSIGN_OR_RETURN(config.vocab_size, VocabularySize(keys));
  ASSIGN_OR_RETURN(config.rms_epsilon, keys.Float("attention.layer_norm_rms_epsilon", 1e-12, 0.1));
  RETURN_IF_ERROR(RefuseUnknownArithmetic(keys));
  return config;
}

absl::StatusOr<AttentionConfig> ReadGroupedAttention(const ModelKeys& keys, const ModelConfig& config) {
  AttentionConfig attention;
  ASSIGN_OR_RETURN(attention.num_heads, keys.UniformInt("attention.head_count", 1, kMaxHeads));
  attention.num_kv_heads = attention.num_heads;
  if (keys.Has("attention.head_count_kv")) {
    ASSIGN_OR_RETURN(attention.num_kv_heads, keys.UniformInt("attention.head_count_kv", 1, attention.num_heads));
  }
  if (attention.num_heads % attention.num_kv_heads != 0) {
    return keys.Error("attention.head_count_kv",
                      absl::StrFormat("is %d, want a divisor of the %d heads", attention.num_kv_heads, attention.num_heads));
  }
  if (keys.Has("attention.key_length")) {
    ASSIGN_OR_RETURN(attention.head_dim, keys.Int("attention.key_length", 2, kMaxHeadDim));
  } else {
    RETURN_IF_ERROR(keys.CheckMultiple("embedding_length", config.n_embd, attention.num_heads));
    attention.head_dim = config.n_embd / attention.num_heads;
    if (attention.head_dim < 2 || attention.head_dim > kMaxHeadDim) {
      return keys.Error("attention.head_count",
                        absl::StrFormat("makes heads of %d, want 2 to %d", attention.head_dim, kMaxHeadDim));
    }
  }
  RETURN_IF_ERROR(keys.CheckMultiple("attention.key_length", attention.head_dim, 2));
  // Rows of the output projection are whole quantised blocks.
  if (attention.q_size() % kWidthMultiple != 0) {
    return keys.Error("attention.head_count", absl::StrFormat("is %d heads of %d, want a product that is a multiple of %d",
                                                              attention.num_heads, attention.head_dim, kWidthMultiple));
  }
  if (keys.Has("attention.value_length")) {
    RETURN_IF_ERROR(keys.Int("attention.value_length", attention.head_dim, attention.head_dim).status());
  }
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_dim));
  ASSIGN_OR_RETURN(attention.rope, ReadRope(keys, attention.head_dim));
  return attention;
}

absl::StatusOr<RopeConfig> ReadRope(const ModelKeys& keys, int64_t head_dim) {
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

  // Without its type nobody would read the rest, and a model that was trained with YaRN would run without it.
  if (!keys.Has("rope.scaling.type")) {
    for (const char* const sibling :
         {"rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
          "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier"}) {
      if (!keys.Has(sibling)) continue;
      return keys.Error("rope.scaling.type",
                        absl::StrFormat("is missing, though '%s' is there: want none or yarn", keys.Name(sibling)));
    }
  }
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

absl::Status ReadExperts(const ModelKeys& keys, ModelConfig* config) {
  RouterConfig& router = config->router;
  ASSIGN_OR_RETURN(router.num_experts, keys.Int("expert_count", 1, kMaxExperts));
  ASSIGN_OR_RETURN(router.top_k, keys.Int("expert_used_count", 1, std::min(router.num_experts, kMaxTopK)));
  const std::string_view n_ff_key = keys.Has("expert_feed_forward_length") ? "expert_feed_forward_length" : "feed_forward_length";
  ASSIGN_OR_RETURN(config->expert.n_ff, keys.UniformInt(n_ff_key, 1, kMaxWidth));
  return keys.CheckMultiple(n_ff_key, config->expert.n_ff, kInnerWidthMultiple);
}

absl::Status ReadGate(const ModelKeys& keys, RouterScore absent, RouterConfig* router) {
  // llama.cpp's numbers: 1 softmax, 2 sigmoid, 3 softmax over the chosen logits alone, which is softmax renormalised.
  constexpr int64_t kSoftmax = 1, kSigmoid = 2, kSoftmaxOfChosen = 3;
  ASSIGN_OR_RETURN(const int64_t function,
                   keys.IntOr("expert_gating_func", absent == RouterScore::kSoftmax ? kSoftmax : kSigmoid, INT64_MIN, INT64_MAX));
  if (function != kSoftmax && function != kSigmoid && function != kSoftmaxOfChosen) {
    return Unimplemented("%s: key '%s' is %d; Ferry runs 1 (softmax), 2 (sigmoid) and 3 (softmax of the chosen)",
                         keys.file().path(), keys.Name("expert_gating_func"), function);
  }
  router->score = function == kSigmoid ? RouterScore::kSigmoid : RouterScore::kSoftmax;
  ASSIGN_OR_RETURN(router->normalise, keys.BoolOr("expert_weights_norm", router->normalise));
  if (function == kSoftmaxOfChosen) router->normalise = true;
  ASSIGN_OR_RETURN(router->weight_scale, keys.FloatOr("expert_weights_scale", 1, 0, 1e4));
  if (router->weight_scale == 0) router->weight_scale = 1;  // as files say that have no such factor
  ASSIGN_OR_RETURN(router->num_groups, keys.IntOr("expert_group_count", 1, 0, router->num_experts));
  router->num_groups = std::max<int64_t>(router->num_groups, 1);
  if (router->num_experts % router->num_groups != 0) {
    return keys.Error("expert_group_count",
                      absl::StrFormat("is %d, want a divisor of the %d experts", router->num_groups, router->num_experts));
  }
  router->groups_used = router->num_groups;
  // DeepSeek-V2 (softmax) takes a group by its best expert, V3 and those after it (sigmoid) by its best two.
  router->group_best = router->score == RouterScore::kSoftmax ? 1 : 2;
  if (router->num_groups > 1) {
    ASSIGN_OR_RETURN(router->groups_used, keys.Int("expert_group_used_count", 1, router->num_groups));
  }
  const int64_t choice = router->groups_used * (router->num_experts / router->num_groups);
  if (router->top_k > choice) {
    return keys.Error("expert_used_count", absl::StrFormat("is %d, want at most the %d experts of %d groups", router->top_k,
                                                           choice, router->groups_used));
  }
  return absl::OkStatus();
}

absl::Status ReadLayersWithDenseOnes(const ModelKeys& keys, const AttentionConfig& attention, ModelConfig* config) {
  ASSIGN_OR_RETURN(const int64_t num_dense, keys.IntOr("leading_dense_block_count", 0, 0, config->num_layers - 1));
  ASSIGN_OR_RETURN(const int64_t num_shared, keys.IntOr("expert_shared_count", 0, 0, kMaxExperts));
  LayerConfig dense = {.attention = attention, .mlp = MlpConfig(), .experts = false};
  if (num_dense > 0) {
    ASSIGN_OR_RETURN(dense.mlp->n_ff, keys.UniformInt("feed_forward_length", 1, kMaxWidth));
    RETURN_IF_ERROR(keys.CheckMultiple("feed_forward_length", dense.mlp->n_ff, kInnerWidthMultiple));
  }
  LayerConfig experts = {.attention = attention, .mlp = std::nullopt, .experts = true};
  if (num_shared > 0) {
    experts.mlp = config->expert;
    experts.mlp->n_ff *= num_shared;
  }
  config->layers.assign(num_dense, dense);
  config->layers.resize(config->num_layers, experts);
  return absl::OkStatus();
}

bool HasTensor(const ModelKeys& keys, int64_t layer, std::string_view name) {
  return keys.file().FindTensor(absl::StrFormat("blk.%d.%s", layer, name)) != nullptr;
}

}  // namespace ferry
