#pragma once

// Makes gpt-oss models of any shape with seeded random weights: for tests, and at full width for benchmarks, where only
// the shape matters. The same options give the same bytes, however many threads write them.
//
// Weights are random codes, scaled so that every projection of an input of unit variance has about unit variance:
// activations stay finite through any number of layers, attention and routing are neither flat nor saturated, and the
// best logit is clearly the largest. The vocabulary is a working byte-level BPE: 256 bytes, syllables with their merges, words.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/gguf/gguf_writer.h"
#include "common/model/dtype.h"
#include "common/status.h"

namespace ferry {

// Defaults: a model for unit tests, about 400 KB.
struct MakeModelOptions {
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
  int64_t sliding_window = 128;
  double rope_freq_base = 150000;
  double yarn_factor = 32;  // 1: no YaRN
  int64_t yarn_original_context = 4096;
  double router_bias_spread = 0;  // standard deviation of the router bias: how unevenly experts are used
  uint64_t seed = 1;
  DType expert_dtype = DType::kMXFP4;
  DType dense_dtype = DType::kQ8_0;  // attention, embedding and output
  bool merged_gate_up = false;       // ffn_gate_up_exps instead of two tensors
  bool tied_output = false;          // no output.weight

  // Full width: gpt-oss-20b's 24 layers of 32 experts and 120b's 36 of 128. Set layers and experts for parts of them.
  static MakeModelOptions GptOss20b();
  static MakeModelOptions GptOss120b();
};

// InvalidArgument names the option's metadata key and its range (ModelConfig::FromGguf checks it), or the data type.
absl::StatusOr<GgufWriter> MakeModelWriter(const MakeModelOptions& options);
absl::StatusOr<std::vector<std::byte>> MakeModelBytes(const MakeModelOptions& options);
// Errors of writing: as GgufWriter::WriteFile.
absl::Status MakeModelFile(const MakeModelOptions& options, const std::string& path,
                           const GgufWriter::FileOptions& file_options = {});

}  // namespace ferry
