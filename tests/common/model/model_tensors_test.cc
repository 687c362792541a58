#include "common/model/model_tensors.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <functional>

#include "common/gguf/gguf_writer.h"
#include "common/model/make_model.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

// A model in memory, opened.
struct Model {
  std::vector<std::byte> bytes;
  GgufFile file;
  ModelConfig config;
};
absl::StatusOr<Model> OpenModel(const MakeModelOptions& options, const std::function<void(GgufWriter&)>& change = {}) {
  ASSIGN_OR_RETURN(GgufWriter writer, MakeModelWriter(options));
  if (change) change(writer);
  std::vector<std::byte> bytes = writer.ToBytes();
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::Parse(bytes));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromGguf(file));
  return Model{std::move(bytes), std::move(file), std::move(config)};
}

absl::Status CheckAfter(const std::function<void(GgufWriter&)>& change, const MakeModelOptions& options = {}) {
  ASSIGN_OR_RETURN(const Model model, OpenModel(options, change));
  return CheckModelTensors(model.config, model.file);
}

// Puts a tensor of zeros in the place of another.
void Replace(GgufWriter& writer, std::string_view name, DType dtype, std::vector<int64_t> dims) {
  writer.RemoveTensor(name);
  const auto zeros = [](uint64_t, std::span<std::byte> out) { std::ranges::fill(out, std::byte{0}); };
  ASSERT_OK(writer.AddTensor(name, dtype, std::move(dims), zeros));
}

TEST(ModelTensors, AcceptsTheDemoModel) {
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
  EXPECT_OK(CheckModelTensors(config, file));
}

TEST(ModelTensors, NamesATensorThatIsMissing) {
  for (const char* name : {"token_embd.weight", "output_norm.weight", "blk.1.attn_sinks.weight", "blk.0.attn_k.bias",
                           "blk.1.ffn_gate_inp.bias", "blk.0.ffn_down_exps.weight", "blk.1.ffn_up_exps.bias"}) {
    EXPECT_THAT(CheckAfter([&](GgufWriter& writer) { writer.RemoveTensor(name); }),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(absl::StrFormat("tensor '%s' is missing", name))));
  }
}

TEST(ModelTensors, NamesATensorOfAnotherShape) {
  EXPECT_THAT(CheckAfter([](GgufWriter& w) {
                Replace(w, "blk.1.attn_q.weight", DType::kF32, {128, 64});
              }),
              StatusIs(StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("tensor 'blk.1.attn_q.weight' is [128, 64], want [64, 128]"), HasSubstr("at byte"))));
  // As many elements, but other experts.
  EXPECT_THAT(CheckAfter([](GgufWriter& w) {
                Replace(w, "blk.0.ffn_up_exps.weight", DType::kF32, {64, 32, 16});
              }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("want [64, 64, 8]")));
  EXPECT_THAT(CheckAfter([](GgufWriter& w) {
                Replace(w, "output.weight", DType::kF32, {64, 511});
              }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("output.weight")));
}

TEST(ModelTensors, NamesATensorOfATypeItDoesNotCompute) {
  MakeModelOptions options;
  options.n_embd = options.n_ff = 256;  // a block of the K types
  EXPECT_THAT(CheckAfter(
                  [](GgufWriter& w) {
                    Replace(w, "blk.1.ffn_down_exps.weight", DType::kTQ1_0, {256, 256, 8});
                  },
                  options),
              StatusIs(StatusCode::kUnimplemented, AllOf(HasSubstr("blk.1.ffn_down_exps.weight"), HasSubstr("TQ1_0"))));
  EXPECT_THAT(CheckAfter([](GgufWriter& w) { Replace(w, "blk.0.attn_norm.weight", DType::kF16, {64}); }),
              StatusIs(StatusCode::kUnimplemented, AllOf(HasSubstr("blk.0.attn_norm.weight"), HasSubstr("wants F32"))));
}

TEST(ModelTensors, LetsTheEmbeddingServeAsOutput) {
  ASSERT_OK_AND_ASSIGN(const Model model, OpenModel({.tied_output = true}));
  EXPECT_OK(CheckModelTensors(model.config, model.file));
  const DenseTensor output = DenseTensorsOf(model.config, 0, model.config.num_layers).back();
  ASSERT_EQ(output.role, TensorRole::kOutput);
  ASSERT_OK_AND_ASSIGN(const TensorInfo* const tensor, FindDense(model.config, model.file, output));
  EXPECT_EQ(tensor->name, "token_embd.weight");
}

TEST(ModelTensors, RefusesTensorsItDoesNotUse) {
  EXPECT_THAT(CheckAfter([](GgufWriter& w) { Replace(w, "blk.7.something", DType::kQ6_K, {256}); }),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("tensor 'blk.7.something'")));
}

TEST(ExpertTensors, AreTheRowsOfEachExpert) {
  ASSERT_OK_AND_ASSIGN(const Model model, OpenModel({.experts = 5, .n_embd = 64, .n_ff = 96}));
  ASSERT_OK_AND_ASSIGN(const ExpertTensors experts, ExpertTensorsOf(model.config, model.file, 1));
  const uint64_t gate_bytes = 96 * 64 / 32 * 17, down_bytes = 64 * 96 / 32 * 17;
  EXPECT_EQ(experts.gate.rows, 96);
  EXPECT_EQ(experts.gate.cols, 64);
  EXPECT_EQ(experts.down.rows, 64);
  EXPECT_EQ(experts.down.cols, 96);
  EXPECT_EQ(experts.gate.dtype(), DType::kMXFP4);
  for (int64_t expert = 0; expert < 5; ++expert) {
    EXPECT_EQ(experts.gate.Of(expert).data(), experts.gate.tensor->data.data() + expert * gate_bytes);
    EXPECT_EQ(experts.gate.Of(expert).size(), gate_bytes);
    EXPECT_EQ(experts.down.Of(expert).data(), experts.down.tensor->data.data() + expert * down_bytes);
    EXPECT_EQ(experts.up_bias.Of(expert).size(), 96 * sizeof(float));
    EXPECT_EQ(experts.down_bias.Of(expert).data(), experts.down_bias.tensor->data.data() + expert * 64 * sizeof(float));
  }
}

TEST(ExpertTensors, TakeGateAndUpOutOfAMergedTensor) {
  ASSERT_OK_AND_ASSIGN(const Model model, OpenModel({.experts = 3, .n_ff = 96, .merged_gate_up = true}));
  EXPECT_OK(CheckModelTensors(model.config, model.file));
  ASSERT_OK_AND_ASSIGN(const ExpertTensors experts, ExpertTensorsOf(model.config, model.file, 0));
  EXPECT_EQ(experts.gate.tensor, experts.up.tensor);
  for (int64_t expert = 0; expert < 3; ++expert) {  // an expert's gate rows, then its up rows, then the next expert
    const std::span<const std::byte> gate = experts.gate.Of(expert), up = experts.up.Of(expert);
    EXPECT_EQ(gate.data() + gate.size(), up.data());
    EXPECT_EQ(up.data() + up.size(), experts.gate.tensor->data.data() + (expert + 1) * 2 * gate.size());
    EXPECT_EQ(experts.up_bias.Of(expert).data(), experts.gate_bias.Of(expert).data() + 96 * sizeof(float));
  }
}

}  // namespace
}  // namespace ferry
