// The shapes of published models, for MakeModelOptions::Like.

#include <string>
#include <vector>

#include "common/model/make_model.h"

namespace ferry {

MakeModelOptions MakeModelOptions::GptOss20b() {
  MakeModelOptions options;
  options.name = "made-gpt-oss-20b";
  options.layers = 24;
  options.experts = 32;
  options.top_k = 4;
  options.n_embd = options.n_ff = 2880;
  options.heads = 64;
  options.kv_heads = 8;
  options.head_dim = 64;
  options.vocab = 201088;
  options.context = 131072;
  return options;
}

MakeModelOptions MakeModelOptions::GptOss120b() {
  MakeModelOptions options = GptOss20b();
  options.name = "made-gpt-oss-120b";
  options.layers = 36;
  options.experts = 128;
  return options;
}

namespace {

MakeModelOptions Qwen3_30b() {
  return {.architecture = "qwen3moe",
          .name = "made-qwen3-30b",
          .layers = 48,
          .experts = 128,
          .top_k = 8,
          .n_embd = 2048,
          .n_ff = 768,
          .heads = 32,
          .kv_heads = 4,
          .head_dim = 128,
          .vocab = 151936,
          .context = 40960,
          .rope_freq_base = 1e6,
          .yarn_factor = 1};
}
MakeModelOptions Qwen3_235b() {
  MakeModelOptions options = Qwen3_30b();
  options.name = "made-qwen3-235b";
  options.layers = 94;
  options.n_embd = 4096, options.n_ff = 1536;
  options.heads = 64;
  return options;
}
MakeModelOptions DeepseekV2Lite() {
  return {.architecture = "deepseek2",
          .name = "made-deepseek-v2-lite",
          .layers = 27,
          .experts = 64,
          .top_k = 6,
          .n_embd = 2048,
          .n_ff = 1408,
          .heads = 16,
          .head_dim = 192,
          .vocab = 102400,
          .context = 163840,
          .rope_freq_base = 10000,
          .yarn_factor = 40,
          .yarn_original_context = 4096,
          .rope_dims = 64,
          .dense_layers = 1,
          .dense_ff = 10944,
          .shared_experts = 2,
          .normalise = false,
          .kv_rank = 512,
          .value_dim = 128};
}
MakeModelOptions DeepseekV3() {
  MakeModelOptions options = DeepseekV2Lite();
  options.name = "made-deepseek-v3";
  options.layers = 61, options.experts = 256, options.top_k = 8;
  options.n_embd = 7168, options.n_ff = 2048, options.heads = 128, options.vocab = 129280;
  options.dense_layers = 3, options.dense_ff = 18432, options.shared_experts = 1;
  options.sigmoid = options.normalise = true;
  options.weight_scale = 2.5;
  options.groups = 8, options.groups_used = 4;
  options.q_rank = 1536;
  return options;
}
MakeModelOptions Glm45Air() {
  return {.architecture = "glm4moe",
          .name = "made-glm-4.5-air",
          .layers = 46,
          .experts = 128,
          .top_k = 8,
          .n_embd = 4096,
          .n_ff = 1408,
          .heads = 96,
          .kv_heads = 8,
          .head_dim = 128,
          .vocab = 151552,
          .context = 131072,
          .rope_freq_base = 1e6,
          .yarn_factor = 1,
          .rope_dims = 64,
          .dense_layers = 1,
          .dense_ff = 10944,
          .shared_experts = 1,
          .sigmoid = true};
}

MakeModelOptions Qwen36_35b() {
  return {.architecture = "qwen35moe",
          .name = "made-qwen3.6-35b",
          .layers = 40,
          .experts = 256,
          .top_k = 8,
          .n_embd = 2048,
          .n_ff = 512,
          .heads = 16,
          .kv_heads = 2,
          .head_dim = 256,
          .vocab = 248320,
          .context = 262144,
          .rope_freq_base = 1e7,
          .yarn_factor = 1,
          .rope_dims = 64,
          .shared_experts = 1,
          .delta_key_heads = 16,
          .delta_heads = 32,
          .delta_dim = 128};
}

struct NamedShape {
  const char* name;
  MakeModelOptions (*options)();
};
constexpr NamedShape kShapes[] = {{"20b", MakeModelOptions::GptOss20b},
                                  {"120b", MakeModelOptions::GptOss120b},
                                  {"qwen3-30b", Qwen3_30b},
                                  {"qwen3-235b", Qwen3_235b},
                                  {"deepseek-v2-lite", DeepseekV2Lite},
                                  {"deepseek-v3", DeepseekV3},
                                  {"glm-4.5-air", Glm45Air},
                                  {"qwen3.6-35b", Qwen36_35b}};

}  // namespace

std::vector<std::string> MakeModelOptions::Names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<MakeModelOptions> MakeModelOptions::Like(std::string_view name) {
  std::string known;
  for (const NamedShape& shape : kShapes) {
    if (name == shape.name) return shape.options();
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
  }
  return InvalidArgument("there is no shape '%s'; known are %s", name, known);
}

}  // namespace ferry
