// What the readers of architectures make of a file, and what they refuse.

#include "common/model/architectures/architectures.h"

#include <cmath>
#include <functional>

#include "common/model/make_model.h"
#include "common/model/model_header.h"
#include "common/model/model_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument, kUnknown = absl::StatusCode::kUnimplemented;

// A small model of each architecture.
MakeModelOptions Small(const std::string& architecture) {
  MakeModelOptions options = {.architecture = architecture, .layers = 3, .expert_dtype = DType::kQ8_0};
  options.yarn_factor = 1;
  if (architecture == "glm4moe") {
    options.rope_dims = 16, options.dense_layers = 1, options.shared_experts = 1, options.sigmoid = true;
  }
  if (architecture == "deepseek2") {
    options.head_dim = 48, options.rope_dims = 16, options.dense_layers = 1, options.shared_experts = 2;
    options.q_rank = 96, options.sigmoid = true, options.groups = 4, options.groups_used = 2;
    options.yarn_factor = 40;
  }
  if (architecture.starts_with("qwen3next") || architecture == "qwen35moe") options.rope_dims = 16, options.full_interval = 3;
  return options;
}

absl::StatusOr<ModelConfig> ConfigOf(const std::string& architecture, const std::function<void(GgufWriter&)>& change = nullptr) {
  ASSIGN_OR_RETURN(GgufWriter writer, MakeModelWriter(Small(architecture)));
  if (change) change(writer);
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Parse(bytes));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromGguf(file));
  RETURN_IF_ERROR(CheckModelTensors(config, file));
  return config;
}

TEST(Architectures, Qwen3MoeHasHeadNormsAndNoBiases) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigOf("qwen3moe"));
  const AttentionConfig& attention = config.layers[2].attention;
  EXPECT_TRUE(attention.head_norms);
  EXPECT_FALSE(attention.bias || attention.output_bias || attention.sinks || config.expert.bias || config.router.bias);
  EXPECT_EQ(attention.rope.num_dims, 32);
  EXPECT_TRUE(config.router.normalise);
  EXPECT_FALSE(config.layers[0].mlp.has_value());
}

TEST(Architectures, Glm4MoeBeginsWithADenseLayerAndSharesAnExpert) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigOf("glm4moe"));
  EXPECT_FALSE(config.layers[0].experts);
  EXPECT_EQ(config.layers[0].mlp->n_ff, 128);
  EXPECT_TRUE(config.layers[1].experts);
  EXPECT_EQ(config.layers[1].mlp->n_ff, 64);
  EXPECT_TRUE(config.layers[1].attention.bias);
  EXPECT_FALSE(config.layers[1].attention.head_norms);
  EXPECT_EQ(config.layers[1].attention.rope.num_dims, 16);
  EXPECT_EQ(config.router.score, RouterScore::kSigmoid);
  EXPECT_TRUE(config.router.selection_bias);
}

TEST(Architectures, LayersThatPredictFurtherTokensAreNotRun) {
  ASSERT_OK_AND_ASSIGN(GgufWriter writer, MakeModelWriter(Small("glm4moe")));
  writer.SetUint32("glm4moe.block_count", 4);
  writer.SetUint32("glm4moe.nextn_predict_layers", 1);
  ASSERT_OK(writer.AddTensor("blk.3.nextn.enorm.weight", DType::kF32, {64}, std::vector<std::byte>(256)));
  const std::vector<std::byte> bytes = writer.ToBytes();
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
  EXPECT_EQ(config.num_layers, 3);
  EXPECT_OK(CheckModelTensors(config, file));
}

TEST(Architectures, Deepseek2ScalesScoresByYarn) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigOf("deepseek2"));
  const AttentionConfig& attention = config.layers[0].attention;
  EXPECT_TRUE(attention.latent() && attention.rope.neighbours);
  EXPECT_EQ(attention.nope_dim(), 32);
  EXPECT_EQ(attention.latent_dim(), 80);
  EXPECT_EQ(attention.rope.attention_factor, 1);
  const double sharpened = 1 + 0.1f * std::log(40.0);
  EXPECT_NEAR(attention.scale, sharpened * sharpened / std::sqrt(48.0), 1e-9);
  EXPECT_EQ(config.router.num_groups, 4);
  EXPECT_EQ(config.router.groups_used, 2);
}

TEST(Architectures, Qwen3NextHasDeltaNetsBesideGatedAttention) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ConfigOf("qwen3next"));
  EXPECT_TRUE(config.keeps_states());
  const AttentionConfig &net = config.layers[1].attention, &full = config.layers[2].attention;
  EXPECT_TRUE(config.layers[0].attention.delta() && net.delta() && !full.delta());
  EXPECT_TRUE(full.output_gate && full.head_norms && !net.output_gate);
  EXPECT_EQ(full.rope.num_dims, 16);
  EXPECT_EQ(net.conv_channels(), 2 * 2 * 32 + 4 * 32);
  EXPECT_EQ(net.key_head(3), 1);
  EXPECT_EQ(net.key_head(2), 1);
  EXPECT_TRUE(config.layers[1].mlp->gated && config.layers[1].experts);
  ASSERT_OK_AND_ASSIGN(const ModelConfig tiled, ConfigOf("qwen35moe"));
  EXPECT_EQ(tiled.layers[1].attention.key_head(2), 0);
}

TEST(Architectures, AnArraySaysWhichLayersKeepStates) {
  const auto with_array = [](std::vector<bool> kinds) {
    return ConfigOf("qwen35moe", [&](GgufWriter& writer) { writer.SetBools("qwen35moe.attention.recurrent_layers", kinds); });
  };
  EXPECT_THAT(with_array({true, true}), StatusIs(kInvalid, HasSubstr("is not an array of 3 bools, one a layer")));
  EXPECT_THAT(with_array({true, false, true}), StatusIs(kInvalid, HasSubstr("'blk.1.attn_q.weight' is missing")));
  EXPECT_OK(with_array({true, true, false}));
}

TEST(Architectures, WorkersReadWhatTheCoordinatorRead) {
  for (const char* architecture : {"gpt-oss", "qwen3moe", "glm4moe", "deepseek2", "qwen3next", "qwen35moe"}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes(Small(architecture)));
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
    const std::string header = ModelHeaderOf(file);
    EXPECT_LT(header.size(), 16u << 10);
    ASSERT_OK_AND_ASSIGN(const ModelDescription got, ModelFromHeader(std::as_bytes(std::span(header))));
    EXPECT_EQ(got.config.vocab_size, config.vocab_size);
    EXPECT_EQ(got.config.router, config.router);
    for (int64_t layer = 0; layer < 3; ++layer) EXPECT_EQ(got.config.layers[layer].attention, config.layers[layer].attention);
    ASSERT_OK_AND_ASSIGN(const ArenaLayout arena, ArenaLayoutOf(file, config));
    EXPECT_EQ(got.arena.bytes(), arena.bytes());
  }
}

TEST(Architectures, RefuseByKeyWhatTheyDoNotKnow) {
  const auto refused = [](const std::string& architecture, const std::string& key, uint32_t value) {
    return ConfigOf(architecture, [&](GgufWriter& writer) { writer.SetUint32(architecture + "." + key, value); });
  };
  EXPECT_THAT(refused("glm4moe", "expert_gating_func", 4), StatusIs(kUnknown, HasSubstr("glm4moe.expert_gating_func")));
  EXPECT_THAT(refused("deepseek2", "expert_group_count", 3), StatusIs(kInvalid, HasSubstr("deepseek2.expert_group_count")));
  EXPECT_THAT(refused("deepseek2", "expert_group_used_count", 5), StatusIs(kInvalid, HasSubstr("expert_group_used_count")));
  EXPECT_THAT(refused("deepseek2", "attention.kv_lora_rank", 40),
              StatusIs(kInvalid, HasSubstr("deepseek2.attention.kv_lora_rank")));
  EXPECT_THAT(refused("qwen3next", "ssm.time_step_rank", 5), StatusIs(kInvalid, HasSubstr("qwen3next.ssm.time_step_rank")));
  EXPECT_THAT(refused("qwen3next", "ssm.inner_size", 64), StatusIs(kInvalid, HasSubstr("qwen3next.ssm.inner_size")));
  EXPECT_THAT(refused("qwen3moe", "expert_used_count", 17), StatusIs(kInvalid, HasSubstr("qwen3moe.expert_used_count")));
  EXPECT_THAT(refused("qwen3moe", "expert_count", 1025), StatusIs(kInvalid, HasSubstr("qwen3moe.expert_count")));
  EXPECT_THAT(ConfigOf("qwen3moe", [](GgufWriter& writer) { writer.SetFloat32("qwen3moe.logit_scale", 0.5f); }),
              StatusIs(kUnknown, HasSubstr("qwen3moe.logit_scale")));
  EXPECT_THAT(ConfigOf("qwen3moe", [](GgufWriter& writer) { writer.SetString("general.type", "adapter"); }),
              StatusIs(kUnknown, HasSubstr("general.type")));
}

TEST(Architectures, RefuseTensorsThatWouldBeLeftOut) {
  EXPECT_THAT(ConfigOf("qwen3moe",
                       [](GgufWriter& writer) {
                         ASSERT_OK(writer.AddTensor("blk.0.attn_q.bias", DType::kF32, {128}, std::vector<std::byte>(512)));
                       }),
              StatusIs(kUnknown, HasSubstr("tensor 'blk.0.attn_q.bias'")));
}

TEST(Architectures, MadeModelsHaveCountsOfFourBytesAsLlamaCppReadsThem) {
  for (const char* architecture : {"gpt-oss", "qwen3moe", "glm4moe", "deepseek2", "qwen3next", "qwen35moe"}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes(Small(architecture)));
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
    EXPECT_EQ(file.FindEntry(std::string(architecture) + ".expert_count")->type, GgufType::kUint32);
    for (const GgufEntry& entry : file.entries()) EXPECT_NE(entry.type, GgufType::kUint64) << entry.key;
  }
}

TEST(Architectures, EveryNamedShapeIsReadable) {
  for (const std::string& name : MakeModelOptions::Names()) {
    ASSERT_OK_AND_ASSIGN(MakeModelOptions options, MakeModelOptions::Like(name));
    options.vocab = 512;  // the rest of a model of this shape is metadata until it is written
    EXPECT_OK(MakeModelWriter(options).status()) << name;
  }
}

}  // namespace
}  // namespace ferry
