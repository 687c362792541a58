#pragma once

// The hyper-parameters of a model that the engine computes with, layer by layer. The readers of architectures read them from a
// GGUF file and check them. No other code reads a hyper-parameter's metadata key or compares the name of an architecture.

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

namespace ferry {

class GgufFile;

// Rotary position embedding with YaRN (arXiv:2309.00071).
struct RopeConfig {
  double freq_base = 10000;
  int64_t num_dims = 0;               // leading dimensions of a head that are rotated
  bool neighbours = false;            // pairs are dimensions (2i, 2i + 1); otherwise (i, i + num_dims / 2)
  double yarn_factor = 1;             // 1: no scaling
  int64_t yarn_original_context = 0;  // context the frequencies were trained for; 0 without YaRN
  double yarn_beta_fast = 32;
  double yarn_beta_slow = 1;
  bool yarn_whole_dims = false;  // the correction range is rounded to whole dimensions (HF's `truncate`)
  double attention_factor = 1;   // multiplies cos and sin

  bool operator==(const RopeConfig&) const = default;
};

enum class AttentionKind {
  kGrouped,     // query head h reads key and value head h / (num_heads / num_kv_heads)
  kLatent,      // all heads read one latent vector a token (multi-head latent attention, arXiv:2405.04434)
  kGatedDelta,  // a state of fixed size in place of keys and values: kernels/gated_delta.h
};

struct AttentionConfig {
  AttentionKind kind = AttentionKind::kGrouped;
  int64_t num_heads = 0;     // gated delta: of values
  int64_t num_kv_heads = 0;  // latent: 1; gated delta: of queries and of keys, a divisor of num_heads
  int64_t head_dim = 0;  // of a query; latent: the dimensions without rotation, then the rotated ones; gated delta: of values too
  // Of latent attention alone.
  int64_t value_dim = 0;          // of a head
  int64_t q_rank = 0;             // queries are made in two steps through so many numbers; 0: in one
  int64_t kv_rank = 0;            // numbers of a token that keys and values of all heads are made from
  bool joined_key_value = false;  // the file has the matrices for keys and values in one
  // Of a gated delta net alone.
  int64_t conv_taps = 0;      // tokens that the convolution sees, the present one included
  bool tiled_heads = false;   // value head h has key head h % num_kv_heads; otherwise h / (num_heads / num_kv_heads)
  bool joined_input = false;  // the file has queries, keys, values and gates in one matrix: of each key head all, then the next
  bool joined_decay = false;  // likewise beta and alpha
  // Of the others.
  int64_t window = 0;  // tokens a row sees, itself included; 0: all
  double scale = 1;    // of scores
  bool bias = false;   // of queries, keys and values
  bool output_bias = false;
  bool sinks = false;        // a score without a value for each head
  bool head_norms = false;   // RMSNorm of each head of queries and keys before the rotation
  bool output_gate = false;  // a head's result is multiplied with sigmoid(gate); in the file its gate rows follow its query rows
  RopeConfig rope;

  bool latent() const { return kind == AttentionKind::kLatent; }
  bool delta() const { return kind == AttentionKind::kGatedDelta; }
  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  int64_t nope_dim() const { return head_dim - rope.num_dims; }   // latent: of a query, not rotated
  int64_t latent_dim() const { return kv_rank + rope.num_dims; }  // latent: of a token in the cache
  int64_t out_size() const { return num_heads * (latent() ? value_dim : head_dim); }
  int64_t conv_channels() const { return 2 * kv_size() + q_size(); }  // gated delta: queries, keys, values
  int64_t key_head(int64_t head) const { return tiled_heads ? head % num_kv_heads : head / (num_heads / num_kv_heads); }
  bool operator==(const AttentionConfig&) const = default;
};

// Numbers of a row that attention keeps on its way, besides the residual stream.
struct AttentionWidths {
  int64_t projected = 0;  // F32: all that is made of a row; latent: the latent and what queries are made from
  int64_t query = 0;      // activations, as these: the factor of the cache's keys
  int64_t latent = 0;     // latent attention: queries, what they are made from, sums of latents
  int64_t attended = 0;
};
AttentionWidths AttentionWidthsOf(const AttentionConfig& attention);
AttentionWidths Widest(const AttentionWidths& a, const AttentionWidths& b);

// The gated linear unit: (u + up_offset) * g * sigmoid(alpha * g) with g = min(gate, limit) and u = clamp(up, -limit, limit).
// gpt-oss has {1.702, 7, 1}, SwiGLU as everybody else has it {1, infinity, 0}.
struct GluConfig {
  double alpha = 1;
  double limit = std::numeric_limits<double>::infinity();
  double up_offset = 0;
  bool operator==(const GluConfig&) const = default;
};

// out = down(glu(gate(x), up(x))).
struct MlpConfig {
  int64_t n_ff = 0;
  bool bias = false;
  bool gated = false;  // out is multiplied with sigmoid(w . x)
  GluConfig glu;
  bool operator==(const MlpConfig&) const = default;
};

enum class RouterScore { kSoftmax, kSigmoid };

// How a token's experts are chosen and weighted: kernels/ops.h, Route.
struct RouterConfig {
  int64_t num_experts = 0;
  int64_t top_k = 0;  // experts of one token
  RouterScore score = RouterScore::kSoftmax;
  bool bias = false;            // added to the logits
  bool selection_bias = false;  // added to the scores for choosing alone
  bool normalise = true;        // weights are divided by their sum
  int64_t num_groups = 1;       // of neighbouring experts; experts of the groups_used best groups alone are chosen from
  int64_t groups_used = 1;
  int64_t group_best = 2;  // a group's score is the sum of so many of its best experts' scores
  double weight_scale = 1;
  bool operator==(const RouterConfig&) const = default;
};

// x += attention(norm(x)); h = norm(x); x += mlp(h); x += experts(h). A layer has an MLP (without experts it is called dense,
// beside them it is the shared expert), or experts, or both.
struct LayerConfig {
  AttentionConfig attention;
  std::optional<MlpConfig> mlp;
  bool experts = false;

  bool slides() const { return attention.window > 0; }
};

struct ModelConfig {
  std::string architecture;
  std::string name;  // general.name, or empty
  int64_t num_layers = 0;
  int64_t num_unused_layers = 0;  // behind them in the file: they predict further tokens and are not run
  int64_t context_length = 0;     // tokens the model was made for
  int64_t n_embd = 0;
  int64_t vocab_size = 0;
  double rms_epsilon = 1e-5;
  std::string ffn_norm = "ffn_norm";  // what the file calls the norm before the MLP and the experts
  // Of every layer that has experts: they are alike in all models that Ferry runs, and the arena and its slots count on it.
  RouterConfig router;
  MlpConfig expert;
  std::vector<LayerConfig> layers;  // num_layers

  const LayerConfig& layer(int64_t layer) const { return layers[layer]; }
  // The widest window; 0: no layer slides.
  int64_t sliding_window() const;
  // Whether a sequence has a state that no position before its end can be read from.
  bool keeps_states() const;

  // Reads and checks the hyper-parameters. InvalidArgument names the key that is missing, of the wrong type or out of
  // range and what would be right; Unimplemented names an architecture that Ferry does not run, or a key that would change what
  // is computed and that Ferry does not know.
  static absl::StatusOr<ModelConfig> FromGguf(const GgufFile& file);
};

// Names and shapes of the tensors of a model, in the order in which they are loaded. The one place that knows them.
enum class TensorRole {
  kTokenEmbedding,  // [vocab, n_embd]
  kOutputNorm,      // [n_embd]
  kOutput,          // [vocab, n_embd]; absent: the token embedding serves
  kAttentionNorm,
  kQueryWeight,  // with an output gate: of each head its query's rows, then its gate's
  kQueryBias,
  kKeyWeight,
  kKeyBias,
  kValueWeight,
  kValueBias,
  kQueryHeadNorm,  // [head_dim]
  kKeyHeadNorm,
  kLatentQueryDown,      // [q_rank, n_embd]
  kLatentQueryNorm,      // [q_rank]
  kLatentQuery,          // [heads * head_dim, q_rank or n_embd]
  kLatentDown,           // [kv_rank + rotated, n_embd]
  kLatentNorm,           // [kv_rank]
  kLatentKeyUp,          // [heads * kv_rank, nope]: from a query to what it is for the latent
  kLatentValueUp,        // [heads * value_dim, kv_rank]
  kLatentKeyAndValueUp,  // [heads * (nope + value_dim), kv_rank]: of each head keys, then values
  kDeltaMixed,           // [conv_channels, n_embd]
  kDeltaGate,            // [heads * head_dim, n_embd]
  kDeltaInput,           // the two before in one, of each key head queries, keys, then values and gates of its value heads
  kDeltaBeta,            // [heads, n_embd]
  kDeltaAlpha,           // likewise
  kDeltaBetaAndAlpha,    // the two before in one, of each key head those of its value heads
  kDeltaConv,            // [conv_channels, conv_taps]
  kDeltaTimeBias,        // [heads]
  kDeltaDecay,           // [heads]
  kDeltaNorm,            // [head_dim]
  kAttentionOutputWeight,
  kAttentionOutputBias,
  kAttentionSinks,
  kFfnNorm,
  kMlpGate,  // [n_ff, n_embd]
  kMlpUp,
  kMlpDown,        // [n_embd, n_ff]
  kMlpOutputGate,  // [1, n_embd]
  kRouterWeight,
  kRouterBias,
  kRouterSelectionBias,
};
struct DenseTensor {
  TensorRole role;
  int64_t layer;       // -1 for the tensors outside the layers
  std::string name;    // in the GGUF file
  int64_t rows, cols;  // a vector has rows 1
  bool is_matrix;      // multiplied or looked up: kept tiled; vectors and the router are F32
  int64_t heads = 1;   // more than 1: the rows of so many matrices, which the file may have as one tensor of three dimensions
};
// The dense tensors of layers [first_layer, end_layer), with the embedding when first_layer is 0 and the output norm
// and matrix when end_layer is num_layers.
std::vector<DenseTensor> DenseTensorsOf(const ModelConfig& config, int64_t first_layer, int64_t end_layer);

}  // namespace ferry
