#pragma once

// What readers of architectures share: the keys of one architecture, by their names without the prefix, and the parts of a
// description that most architectures write alike. Every error names the key and what would be right.

#include <string>
#include <string_view>

#include "common/gguf/gguf.h"
#include "common/model/model_config.h"
#include "common/status.h"

namespace ferry {

class ModelKeys {
 public:
  ModelKeys(const GgufFile& file, std::string architecture) : file_(file), architecture_(std::move(architecture)) {}

  const GgufFile& file() const { return file_; }
  std::string Name(std::string_view key) const { return architecture_ + "." + std::string(key); }
  bool Has(std::string_view key) const { return file_.Has(Name(key)); }

  absl::StatusOr<int64_t> Int(std::string_view key, int64_t min, int64_t max) const { return file_.GetInt(Name(key), min, max); }
  absl::StatusOr<int64_t> IntOr(std::string_view key, int64_t absent, int64_t min, int64_t max) const {
    return file_.GetIntOr(Name(key), absent, min, max);
  }
  // An integer for the whole model, or an array with the same one for every layer.
  absl::StatusOr<int64_t> UniformInt(std::string_view key, int64_t min, int64_t max) const;
  // A float, or the integer that some converters write in its place.
  absl::StatusOr<double> Float(std::string_view key, double min, double max) const;
  absl::StatusOr<double> FloatOr(std::string_view key, double absent, double min, double max) const {
    return Has(key) ? Float(key, min, max) : absent;
  }
  absl::StatusOr<bool> BoolOr(std::string_view key, bool absent) const { return file_.GetBoolOr(Name(key), absent); }
  absl::StatusOr<std::string_view> StringOr(std::string_view key, std::string_view absent) const {
    return file_.GetStringOr(Name(key), absent);
  }

  // InvalidArgument: "model.gguf: key 'gpt-oss.block_count' <what> (at byte 123)".
  absl::Status Error(std::string_view key, std::string_view what) const;
  absl::Status CheckMultiple(std::string_view key, int64_t value, int64_t of) const;
  // Unimplemented: the key is there with another value than the one that changes nothing.
  absl::Status RefuseUnless(std::string_view key, double neutral) const;

 private:
  const GgufFile& file_;
  const std::string architecture_;
};

// block_count without the layers that predict further tokens, context_length, embedding_length, the vocabulary, rms_epsilon; and
// refuses keys that change what every architecture computes.
absl::StatusOr<ModelConfig> ReadBasics(const ModelKeys& keys);
// Heads of grouped attention, with rope over `rope.dimension_count`, else whole heads, and scores times 1 / sqrt(head_dim).
absl::StatusOr<AttentionConfig> ReadGroupedAttention(const ModelKeys& keys, const ModelConfig& config);
// Base, dimensions and YaRN with HF's attention factor 0.1 ln(factor) + 1. `head_dim`: what rope.dimension_count may be at most
// and is when absent.
absl::StatusOr<RopeConfig> ReadRope(const ModelKeys& keys, int64_t head_dim);
// expert_count, expert_used_count and the width of an expert.
absl::Status ReadExperts(const ModelKeys& keys, ModelConfig* config);
// expert_gating_func, expert_weights_norm, expert_weights_scale and groups. `absent`: the score where the file does not say.
absl::Status ReadGate(const ModelKeys& keys, RouterScore absent, RouterConfig* router);
// The layers of a model whose first ones are dense (leading_dense_block_count of feed_forward_length) and whose others have
// expert_shared_count shared experts, which are one MLP, beside the routed ones. After ReadExperts.
absl::Status ReadLayersWithDenseOnes(const ModelKeys& keys, const AttentionConfig& attention, ModelConfig* config);
// Whether the file has the tensor `name` of layer `layer`.
bool HasTensor(const ModelKeys& keys, int64_t layer, std::string_view name);

}  // namespace ferry
