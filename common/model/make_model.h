#pragma once

// Makes models of any architecture and shape with seeded random weights: for tests, and at full width for benchmarks, where only
// the shape matters. The same options give the same bytes, however many threads write them.
//
// Weights are random codes, scaled so that every projection of an input of unit variance has about unit variance:
// activations stay finite through any number of layers, attention and routing are neither flat nor saturated, and the
// best logit is clearly the largest. The vocabulary is a working byte-level BPE: 256 bytes, syllables with their merges, words.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/gguf/gguf_writer.h"
#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

// Defaults: a model for unit tests, about 400 KB.
struct MakeModelOptions {
  std::string architecture = "gpt-oss";  // or qwen3moe, glm4moe, deepseek2, qwen3next, qwen35moe
  std::string name = "made";
  int64_t layers = 2;
  int64_t experts = 8;
  int64_t top_k = 2;
  int64_t n_embd = 64;
  int64_t n_ff = 64;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 32;
  int64_t vocab = 512;
  int64_t context = 4096;
  int64_t sliding_window = 128;  // gpt-oss
  double rope_freq_base = 150000;
  double yarn_factor = 32;  // 1: no YaRN
  int64_t yarn_original_context = 4096;
  // What the architecture does not have is left out.
  int64_t rope_dims = 0;     // rotated dimensions of a head; 0: all. deepseek2: of head_dim, which has them behind the others
  int64_t dense_layers = 0;  // the first ones, with an MLP of dense_ff
  int64_t dense_ff = 128;
  int64_t shared_experts = 0;  // of every other layer
  // Of qwen3next and qwen35moe: every so many layers one has full attention, the others are gated delta nets.
  int64_t full_interval = 4;
  int64_t delta_key_heads = 2, delta_heads = 4, delta_dim = 32;
  bool sigmoid = false;   // the router's scores, with a bias for choosing; softmax otherwise
  bool normalise = true;  // the weights of a token's experts
  double weight_scale = 1;
  int64_t groups = 1, groups_used = 1;
  int64_t q_rank = 0, kv_rank = 64, value_dim = 32;  // of latent attention
  double router_bias_spread = 0;                     // standard deviation of the router bias: how unevenly experts are used
  uint64_t seed = 1;
  // A matrix whose rows are not whole blocks of its type has the one that llama-quantize falls back to.
  DType expert_dtype = DType::kMXFP4;
  DType dense_dtype = DType::kQ8_0;  // attention, embedding and output
  bool merged_gate_up = false;       // ffn_gate_up_exps instead of two tensors
  bool tied_output = false;          // no output.weight

  // Full width: gpt-oss-20b's 24 layers of 32 experts and 120b's 36 of 128. Set layers and experts for parts of them.
  static MakeModelOptions GptOss20b();
  static MakeModelOptions GptOss120b();
  // Shapes by the names that `ferry make-model --like` takes: 20b, 120b, qwen3-30b, qwen3-235b, deepseek-v2-lite, deepseek-v3,
  // glm-4.5-air, qwen3.6-35b. InvalidArgument lists them.
  static absl::StatusOr<MakeModelOptions> Like(std::string_view name);
  static std::vector<std::string> Names();
};

// InvalidArgument names the option's metadata key and its range (ModelConfig::FromGguf checks it), or the data type.
absl::StatusOr<GgufWriter> MakeModelWriter(const MakeModelOptions& options);
absl::StatusOr<std::vector<std::byte>> MakeModelBytes(const MakeModelOptions& options);
// Errors of writing: as GgufWriter::WriteFile.
absl::Status MakeModelFile(const MakeModelOptions& options, const std::string& path,
                           const GgufWriter::FileOptions& file_options = {});

}  // namespace ferry
