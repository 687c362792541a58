#include "common/model/make_model.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "common/gguf/gguf.h"
#include "common/model/decode_rows.h"
#include "common/model/model_config.h"
#include "common/model/model_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

struct Moments {
  double mean = 0, rms = 0;
};
Moments MomentsOf(const TensorInfo& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.rows() * tensor.cols()));
  EXPECT_OK(DecodeRows(tensor.dtype, tensor.cols(), tensor.data, values));
  Moments moments;
  for (const float value : values) {
    moments.mean += value;
    moments.rms += static_cast<double>(value) * value;
  }
  const double count = static_cast<double>(values.size());
  return {moments.mean / count, std::sqrt(moments.rms / count)};
}

TEST(MakeModel, MakesAModelThatLoads) {
  for (const MakeModelOptions& options :
       {MakeModelOptions{}, MakeModelOptions{.experts = 1, .top_k = 1}, MakeModelOptions{.merged_gate_up = true},
        MakeModelOptions{.tied_output = true}, MakeModelOptions{.sliding_window = 0, .yarn_factor = 1},
        MakeModelOptions{.n_embd = 96, .n_ff = 160, .heads = 6, .kv_heads = 3, .head_dim = 64, .vocab = 261}}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes(options));
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::FromGguf(file));
    EXPECT_OK(CheckModelTensors(config, file));
    EXPECT_EQ(config.router.num_experts, options.experts);
    EXPECT_EQ(config.expert.n_ff, options.n_ff);
    EXPECT_EQ(config.vocab_size, options.vocab);
    EXPECT_EQ(config.sliding_window(), options.sliding_window);
    EXPECT_EQ(config.layers[0].attention.rope.yarn_factor, options.yarn_factor);
  }
}

TEST(MakeModel, HasTheSizeOfTheRealOnes) {
  ASSERT_OK_AND_ASSIGN(const GgufWriter small, MakeModelWriter(MakeModelOptions::GptOss20b()));
  ASSERT_OK_AND_ASSIGN(const GgufWriter large, MakeModelWriter(MakeModelOptions::GptOss120b()));
  constexpr double kGiB = 1 << 30;
  EXPECT_NEAR(static_cast<double>(small.file_bytes()) / kGiB, 11.27, 0.02);  // published as MXFP4 GGUF
  EXPECT_NEAR(static_cast<double>(large.file_bytes()) / kGiB, 59.02, 0.05);
}

TEST(MakeModel, GivesTheSameBytesForTheSameSeed) {
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> first, MakeModelBytes({.seed = 7}));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> again, MakeModelBytes({.seed = 7}));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> other, MakeModelBytes({.seed = 8}));
  EXPECT_TRUE(first == again);
  EXPECT_FALSE(first == other);
}

TEST(MakeModel, WritesTheFileThatItMakesInMemory) {
  std::string pattern = (std::filesystem::temp_directory_path() / "ferry_make_XXXXXX").string();
  const std::filesystem::path folder = ::mkdtemp(pattern.data());
  const std::string path = (folder / "m.gguf").string();
  const MakeModelOptions options{.n_embd = 256, .n_ff = 256, .expert_dtype = DType::kQ8_0};
  ASSERT_OK(MakeModelFile(options, path, {.num_threads = 3}));
  {
    ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes(options));
    ASSERT_OK_AND_ASSIGN(const GgufFile memory, GgufFile::Parse(bytes));
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(path));
    ASSERT_EQ(file.tensors().size(), memory.tensors().size());
    for (size_t i = 0; i < file.tensors().size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(file.tensors()[i].data, memory.tensors()[i].data)) << file.tensors()[i].name;
    }
  }
  std::filesystem::remove_all(folder);
}

class MakeModelTypes : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Computable, MakeModelTypes,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kMXFP4),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

TEST_P(MakeModelTypes, KeepsProjectionsAtUnitVariance) {
  const MakeModelOptions options{.layers = 1, .n_embd = 320, .n_ff = 192, .expert_dtype = GetParam(), .dense_dtype = GetParam()};
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes(options));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  for (const char* name :
       {"attn_q.weight", "attn_output.weight", "ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_down_exps.weight"}) {
    const TensorInfo* const tensor = file.FindTensor("blk.0." + std::string(name));
    ASSERT_NE(tensor, nullptr) << name;
    const Moments moments = MomentsOf(*tensor);
    EXPECT_NEAR(moments.rms * std::sqrt(static_cast<double>(tensor->cols())), 1, 0.05) << name;
    EXPECT_NEAR(moments.mean / moments.rms, 0, 0.05) << name;
  }
  EXPECT_NEAR(MomentsOf(*file.FindTensor("token_embd.weight")).rms, 1, 0.05);
}

TEST(MakeModel, RowsThatAreNotWholeBlocksHaveALesserType) {
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes,
                       MakeModelBytes({.n_embd = 256, .n_ff = 96, .expert_dtype = DType::kQ4_K}));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  EXPECT_EQ(file.FindTensor("blk.0.ffn_gate_exps.weight")->dtype, DType::kQ4_K);
  EXPECT_EQ(file.FindTensor("blk.0.ffn_down_exps.weight")->dtype, DType::kQ5_0);
}

TEST(MakeModel, SpreadsTheRouterBiasAsAsked) {
  const MakeModelOptions options{.layers = 1, .experts = 512, .router_bias_spread = 1.5};
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes(options));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  EXPECT_NEAR(MomentsOf(*file.FindTensor("blk.0.ffn_gate_inp.bias")).rms, 1.5, 0.15);
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> even_bytes, MakeModelBytes({.layers = 1}));
  ASSERT_OK_AND_ASSIGN(const GgufFile even, GgufFile::Parse(even_bytes));
  EXPECT_EQ(MomentsOf(*even.FindTensor("blk.0.ffn_gate_inp.bias")).rms, 0);
}

TEST(MakeModel, WritesAVocabularyOfDistinctTokens) {
  for (const int64_t size : {261, 300, 512, 20000}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes({.layers = 1, .vocab = size}));
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
    ASSERT_OK_AND_ASSIGN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
    ASSERT_OK_AND_ASSIGN(const std::vector<int64_t> types, file.GetInts("tokenizer.ggml.token_type"));
    ASSERT_OK_AND_ASSIGN(const std::vector<std::string_view> merges, file.GetStrings("tokenizer.ggml.merges"));
    const std::set<std::string_view> distinct(tokens.begin(), tokens.end());
    EXPECT_EQ(distinct.size(), static_cast<size_t>(size));
    EXPECT_EQ(tokens.size(), types.size());
    for (const std::string_view merge : merges) {  // what a merge makes is a token
      EXPECT_TRUE(distinct.contains(std::string{merge[0], merge[2]})) << merge;
    }
    ASSERT_OK_AND_ASSIGN(const int64_t eos, file.GetInt("tokenizer.ggml.eos_token_id", 0, size - 1));
    EXPECT_EQ(tokens[eos], "<|endoftext|>");
    EXPECT_EQ(types[eos], 3);
  }
}

TEST(MakeModel, StartsTheVocabularyWithEveryByte) {
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> bytes, MakeModelBytes({.layers = 1}));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Parse(bytes));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
  EXPECT_EQ(tokens[0], "!");
  EXPECT_EQ(tokens[94], "\u00a1");   // the first byte above ASCII that prints
  EXPECT_EQ(tokens[188], "\u0100");  // byte 0
  EXPECT_EQ(tokens[220], "\u0120");  // the space
  EXPECT_EQ(tokens[255], "\u0143");  // byte 0xad
}

TEST(MakeModel, NamesTheOptionThatIsWrong) {
  EXPECT_THAT(MakeModelBytes({.n_embd = 65}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("embedding_length")));
  EXPECT_THAT(MakeModelBytes({.top_k = 9}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("expert_used_count")));
  EXPECT_THAT(MakeModelBytes({.layers = -1}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("block_count")));
  EXPECT_THAT(MakeModelBytes({.context = int64_t{1} << 32}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("context_length is 4294967296, want 0 to 4294967295")));
  EXPECT_THAT(MakeModelBytes({.vocab = 100}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("vocab")));
  EXPECT_THAT(MakeModelBytes({.router_bias_spread = -1}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("spread")));
  EXPECT_THAT(MakeModelBytes({.expert_dtype = DType::kTQ1_0}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("TQ1_0")));
}

}  // namespace
}  // namespace ferry
