#pragma once

// The hyper-parameters of a model that the engine computes with, read from a GGUF file and checked. No other code reads a
// hyper-parameter's metadata key.

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace ferry {

class GgufFile;

// Rotary position embedding with YaRN (arXiv:2309.00071), as HF transformers computes it for gpt-oss with
// `truncate: false`: the correction range is not rounded to whole dimensions.
struct RopeConfig {
  double freq_base = 10000;
  int64_t num_dims = 0;               // leading dimensions of a head that are rotated; pairs are (i, i + num_dims/2)
  double yarn_factor = 1;             // 1: no scaling
  int64_t yarn_original_context = 0;  // context the frequencies were trained for; 0 without YaRN
  double yarn_beta_fast = 32;
  double yarn_beta_slow = 1;
  double attention_factor = 1;  // multiplies cos and sin; YaRN: 0.1 ln(factor) + 1
};

struct ModelConfig {
  std::string architecture;  // "gpt-oss"
  std::string name;          // general.name, or empty
  int64_t num_layers = 0;
  int64_t context_length = 0;  // tokens the model was made for
  int64_t n_embd = 0;
  int64_t vocab_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;           // experts of one token
  int64_t n_ff = 0;            // width of one expert
  int64_t sliding_window = 0;  // tokens a sliding layer sees, itself included; 0: no layer slides
  double rms_epsilon = 1e-5;
  double swiglu_alpha = 1.702;  // gpt-oss: gate * sigmoid(alpha * gate) * (up + 1), both clamped
  double swiglu_limit = 7;      // gate <= limit, -limit <= up <= limit
  RopeConfig rope;

  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  // Even layers slide (gpt-oss).
  bool slides(int64_t layer) const { return sliding_window > 0 && layer % 2 == 0; }

  // Reads and checks the hyper-parameters. InvalidArgument names the key that is missing, of the wrong type or out of
  // range and what would be right; Unimplemented names an architecture that Ferry does not run.
  static absl::StatusOr<ModelConfig> FromGguf(const GgufFile& file);
};

// Names and shapes of the tensors of a model, in the order in which they are loaded. The one place that knows them.
enum class TensorRole {
  kTokenEmbedding,  // [vocab, n_embd]
  kOutputNorm,      // [n_embd]
  kOutput,          // [vocab, n_embd]; absent: the token embedding serves
  kAttentionNorm,
  kQueryWeight,
  kQueryBias,
  kKeyWeight,
  kKeyBias,
  kValueWeight,
  kValueBias,
  kAttentionOutputWeight,
  kAttentionOutputBias,
  kAttentionSinks,
  kFfnNorm,
  kRouterWeight,
  kRouterBias,
};
struct DenseTensor {
  TensorRole role;
  int64_t layer;       // -1 for the tensors outside the layers
  std::string name;    // in the GGUF file
  int64_t rows, cols;  // a vector has rows 1
  bool is_matrix;      // multiplied or looked up: kept tiled; vectors and the router are F32
};
// The dense tensors of layers [first_layer, end_layer), with the embedding when first_layer is 0 and the output norm
// and matrix when end_layer is num_layers.
std::vector<DenseTensor> DenseTensorsOf(const ModelConfig& config, int64_t first_layer, int64_t end_layer);

}  // namespace ferry
