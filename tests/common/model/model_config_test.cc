#include "common/model/model_config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <functional>

#include "common/gguf/gguf.h"
#include "common/gguf/gguf_writer.h"
#include "common/model/make_model.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

// The configuration of a small good model, after `change`.
absl::StatusOr<ModelConfig> ConfigAfter(const std::function<void(GgufWriter&)>& change) {
  ASSIGN_OR_RETURN(GgufWriter writer, MakeModelWriter({}));
  change(writer);
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Parse(bytes));
  return ModelConfig::FromGguf(file);
}

TEST(ModelConfig, ReadsTheDemoModel) {
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
  EXPECT_EQ(config.architecture, "gpt-oss");
  EXPECT_EQ(config.name, "demo-moe-30m");
  EXPECT_EQ(config.num_layers, 6);
  EXPECT_EQ(config.context_length, 4096);
  EXPECT_EQ(config.n_embd, 256);
  EXPECT_EQ(config.vocab_size, 4096);
  EXPECT_EQ(config.layers[0].attention.num_heads, 8);
  EXPECT_EQ(config.layers[0].attention.num_kv_heads, 2);
  EXPECT_EQ(config.layers[0].attention.head_dim, 64);
  EXPECT_EQ(config.router.num_experts, 32);
  EXPECT_EQ(config.router.top_k, 4);
  EXPECT_EQ(config.expert.n_ff, 192);
  EXPECT_EQ(config.sliding_window(), 128);
  EXPECT_FLOAT_EQ(config.rms_epsilon, 1e-5);
  EXPECT_EQ(config.layers[0].attention.rope.freq_base, 150000);
  EXPECT_EQ(config.layers[0].attention.rope.num_dims, 64);
  EXPECT_EQ(config.layers[0].attention.rope.yarn_factor, 32);
  EXPECT_EQ(config.layers[0].attention.rope.yarn_original_context, 4096);
  EXPECT_EQ(config.layers[0].attention.rope.yarn_beta_fast, 32);
  EXPECT_EQ(config.layers[0].attention.rope.yarn_beta_slow, 1);
  EXPECT_NEAR(config.layers[0].attention.rope.attention_factor, 1.3465735902799727, 1e-15);
  EXPECT_TRUE(config.layers[0].slides());
  EXPECT_FALSE(config.layers[1].slides());
}

TEST(ModelConfig, KnowsWhatTheFileLeavesOut) {
  GgufWriter writer;
  writer.SetString("general.architecture", "gpt-oss");
  for (const auto& [key, value] : {std::pair{"block_count", 1u},
                                   {"context_length", 8u},
                                   {"embedding_length", 64u},
                                   {"vocab_size", 10u},
                                   {"attention.head_count", 2u},
                                   {"attention.sliding_window", 0u},
                                   {"expert_count", 4u},
                                   {"expert_used_count", 4u},
                                   {"feed_forward_length", 96u}}) {
    writer.SetUint32("gpt-oss." + std::string(key), value);
  }
  writer.SetFloat32("gpt-oss.attention.layer_norm_rms_epsilon", 1e-5f);
  writer.SetFloat32("gpt-oss.rope.freq_base", 10000);
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
  EXPECT_EQ(config.layers[0].attention.num_kv_heads, 2);
  EXPECT_EQ(config.layers[0].attention.head_dim, 32);
  EXPECT_EQ(config.expert.n_ff, 96);
  EXPECT_EQ(config.vocab_size, 10);
  EXPECT_EQ(config.layers[0].attention.rope.num_dims, 32);
  EXPECT_EQ(config.layers[0].attention.rope.yarn_factor, 1);
  EXPECT_EQ(config.layers[0].attention.rope.attention_factor, 1);
  EXPECT_FALSE(config.layers[0].slides());
}

TEST(ModelConfig, PrefersTheWidthOfAnExpert) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigAfter([](GgufWriter& writer) {
                         writer.SetUint32("gpt-oss.expert_feed_forward_length", 96);
                         writer.SetUint32("gpt-oss.feed_forward_length", 128);
                       }));
  EXPECT_EQ(config.expert.n_ff, 96);
}

TEST(ModelConfig, TakesTheVocabularyFromTokensElseFromTheEmbedding) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig from_tokens, ConfigAfter([](GgufWriter& writer) {
                         writer.SetStrings("tokenizer.ggml.tokens", std::vector<std::string>(7, "x"));
                       }));
  EXPECT_EQ(from_tokens.vocab_size, 7);
  ASSERT_OK_AND_ASSIGN(const ModelConfig from_rows,
                       ConfigAfter([](GgufWriter& writer) { writer.Remove("tokenizer.ggml.tokens"); }));
  EXPECT_EQ(from_rows.vocab_size, 512);
}

TEST(ModelConfig, TakesAnArrayOfOneValueForAllLayers) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigAfter([](GgufWriter& writer) {
                         writer.SetInt32s("gpt-oss.attention.head_count_kv", std::vector<int32_t>{2, 2});
                       }));
  EXPECT_EQ(config.layers[0].attention.num_kv_heads, 2);
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) {
                writer.SetInt32s("gpt-oss.attention.head_count_kv", std::vector<int32_t>{2, 4});
              }),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("head_count_kv")));
  EXPECT_THAT(
      ConfigAfter([](GgufWriter& writer) { writer.SetInt32s("gpt-oss.attention.head_count_kv", std::vector<int32_t>{}); }),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("empty")));
}

TEST(ModelConfig, NamesTheKeyThatIsMissing) {
  for (const char* key :
       {"general.architecture", "gpt-oss.block_count", "gpt-oss.context_length", "gpt-oss.embedding_length",
        "gpt-oss.attention.head_count", "gpt-oss.attention.sliding_window", "gpt-oss.attention.layer_norm_rms_epsilon",
        "gpt-oss.expert_count", "gpt-oss.expert_used_count", "gpt-oss.rope.freq_base", "gpt-oss.rope.scaling.type",
        "gpt-oss.rope.scaling.factor", "gpt-oss.rope.scaling.original_context_length"}) {
    EXPECT_THAT(ConfigAfter([&](GgufWriter& writer) { writer.Remove(key); }),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(absl::StrFormat("key '%s' is missing", key))));
  }
}

TEST(ModelConfig, TakesAnIntegerWhereAFloatIsMeant) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigAfter([](GgufWriter& writer) {
                         writer.SetUint32("gpt-oss.rope.freq_base", 10000);
                         writer.SetInt32("gpt-oss.rope.scaling.factor", 4);
                       }));
  EXPECT_EQ(config.layers[0].attention.rope.freq_base, 10000);
  EXPECT_EQ(config.layers[0].attention.rope.yarn_factor, 4);
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) { writer.SetUint32("gpt-oss.rope.freq_base", 0); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("rope.freq_base")));
}

TEST(ModelConfig, RefusesNumbersOutOfRange) {
  for (const auto& [key, value] : {std::pair{"block_count", 0u},
                                   {"block_count", 1u << 31},
                                   {"context_length", 0u},
                                   {"embedding_length", 0u},
                                   {"embedding_length", 65u},
                                   {"embedding_length", 1u << 30},
                                   {"attention.head_count", 0u},
                                   {"attention.head_count_kv", 0u},
                                   {"attention.head_count_kv", 3u},  // 4 heads
                                   {"attention.head_count_kv", 8u},
                                   {"attention.key_length", 0u},
                                   {"attention.key_length", 33u},
                                   {"attention.key_length", 512u},
                                   {"attention.key_length", 4u},     // 4 heads of 4: no whole block
                                   {"attention.value_length", 64u},  // keys have 32
                                   {"expert_count", 0u},
                                   {"expert_count", 1025u},
                                   {"expert_used_count", 0u},
                                   {"expert_used_count", 9u},  // of 8
                                   {"expert_feed_forward_length", 0u},
                                   {"expert_feed_forward_length", 33u},
                                   {"rope.dimension_count", 0u},
                                   {"rope.dimension_count", 31u},
                                   {"rope.dimension_count", 64u},
                                   {"rope.scaling.original_context_length", 0u}}) {
    const std::string name = "gpt-oss." + std::string(key);
    // key_length 4 is refused for what it makes of the heads.
    const std::string named = name == "gpt-oss.attention.key_length" && value == 4 ? "gpt-oss.attention.head_count" : name;
    EXPECT_THAT(ConfigAfter([&](GgufWriter& writer) { writer.SetUint32(name, value); }),
                StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("key '" + named + "'"), HasSubstr("at byte"))))
        << name << " = " << value;
  }
}

TEST(ModelConfig, RefusesFloatsOutOfRange) {
  for (const auto& [key, value] : {std::pair{"attention.layer_norm_rms_epsilon", 0.0f},
                                   {"attention.layer_norm_rms_epsilon", NAN},
                                   {"rope.freq_base", 0.0f},
                                   {"rope.freq_base", INFINITY},
                                   {"rope.scaling.factor", 0.5f},
                                   {"rope.scaling.factor", NAN},
                                   {"rope.scaling.attn_factor", -1.0f},
                                   {"rope.scaling.yarn_beta_fast", 0.0f}}) {
    const std::string name = "gpt-oss." + std::string(key);
    EXPECT_THAT(ConfigAfter([&](GgufWriter& writer) { writer.SetFloat32(name, value); }),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("key '" + name + "'")))
        << name << " = " << value;
  }
}

TEST(ModelConfig, RefusesAKeyOfAnotherType) {
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) { writer.SetString("gpt-oss.block_count", "6"); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("string, want an integer")));
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) { writer.SetUint32("tokenizer.ggml.tokens", 6); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tokenizer.ggml.tokens")));
}

TEST(ModelConfig, NamesWhatItDoesNotRun) {
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) { writer.SetString("general.architecture", "llama"); }),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("'llama'")));
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) { writer.SetString("general.architecture", "gptoss"); }),
              StatusIs(StatusCode::kUnimplemented, AllOf(HasSubstr("ollama"), HasSubstr("made for llama.cpp"))));
  EXPECT_THAT(ConfigAfter([](GgufWriter& writer) { writer.SetString("gpt-oss.rope.scaling.type", "longrope"); }),
              StatusIs(StatusCode::kUnimplemented, AllOf(HasSubstr("rope.scaling.type"), HasSubstr("'longrope'"))));
}

TEST(ModelConfig, MultipliesTheAttentionFactorOfTheFile) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                       ConfigAfter([](GgufWriter& writer) { writer.SetFloat32("gpt-oss.rope.scaling.attn_factor", 0.5f); }));
  EXPECT_NEAR(config.layers[0].attention.rope.attention_factor, 0.5 * (0.1 * std::log(32) + 1), 1e-12);
}

TEST(DenseTensorsOf, DividesAmongStagesWithoutOverlap) {
  ModelConfig config = {.num_layers = 3, .router = {.bias = true}};
  const AttentionConfig attention = {.bias = true, .output_bias = true, .sinks = true};
  config.layers.assign(3, {.attention = attention, .mlp = std::nullopt, .experts = true});
  const auto names = [&](int64_t first, int64_t end) {
    std::vector<std::string> result;
    for (const DenseTensor& tensor : DenseTensorsOf(config, first, end)) result.push_back(tensor.name);
    return result;
  };
  std::vector<std::string> together = names(0, 1);
  for (const auto& [first, end] : {std::pair{1, 2}, std::pair{2, 3}}) {
    for (std::string& name : names(first, end)) together.push_back(std::move(name));
  }
  EXPECT_EQ(together, names(0, 3));
  EXPECT_EQ(together.front(), "token_embd.weight");
  EXPECT_EQ(together.back(), "output.weight");
  EXPECT_EQ(together.size(), 1 + 3 * 13 + 2u);
}

}  // namespace
}  // namespace ferry
