// Every architecture against HF transformers' float32 figures for tiny models of random weights: every next token's
// log-probability. The smallest set that covers the rules lies in testdata; the rest is taken from ../shared/golden where that is
// there.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "common/deadline.h"
#include "nlohmann/json.hpp"
#include "tests/testing/source_path.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

constexpr const char* kBundled[] = {"qwen3moe-f32", "glm4moe-f32", "deepseek2-lite-f32-old", "deepseek2-v3-f32", "qwen3next-f32"};
constexpr const char* kShared[] = {"qwen3moe-q4k",         "qwen3moe-iq4xs",         "glm4moe-f32-nextn",
                                   "glm4moe-q4k",          "glm4moe-iq4xs",          "deepseek2-lite-27l",
                                   "deepseek2-lite-f32",   "deepseek2-lite-q4k",     "deepseek2-lite-iq4xs-old",
                                   "deepseek2-v3-f32-old", "deepseek2-v3-f32-three", "deepseek2-v3-q4k",
                                   "deepseek2-v3-iq4xs",   "qwen3next-f32-old",      "qwen3next-f32-nextn",
                                   "qwen3next-q4k",        "qwen35moe-f32",          "qwen35moe-f32-nextn",
                                   "qwen35moe-q4k"};

// Path of the file without its ending; empty where it is not here.
std::string PathOf(const std::string& name) {
  for (const char* folder : {"tests/worker/testdata/", "../shared/golden/"}) {
    std::string path = SourcePath(folder) + name;
    if (std::filesystem::exists(path + ".gguf")) return path;
  }
  return "";
}

// The first tensor's type that Ferry does not compute with, or empty.
std::string TypeNotComputed(const std::string& path) {
  const absl::StatusOr<GgufFile> file = GgufFile::Open(path);
  if (!file.ok()) return std::string(file.status().message());
  for (const TensorInfo& tensor : file->tensors()) {
    if (!InfoOf(tensor.dtype)->computable) return std::string(NameOf(tensor.dtype));
  }
  return "";
}

struct Setting {
  const char* backend;
  DType kv_type;
  int64_t rows_a_step = 150;  // so that the longest prompt takes two steps
};

absl::StatusOr<std::vector<double>> Score(const TinyModel& model, const std::vector<int32_t>& ids, const Setting& setting) {
  const bool on_gpu = std::string_view(setting.backend) == "cuda";
  const auto ops = MakeOps(setting.backend), host_ops = MakeOps(on_gpu ? "cpu" : setting.backend);
  FakeLink link(&model, host_ops.get());
  StageOptions options = TinyStageOptions(model, 0, model.config.num_layers);
  options.kv = {.key_type = setting.kv_type, .value_type = setting.kv_type, .num_blocks = 16, .num_slots = 1, .ring_blocks = 6};
  options.max_rows = 256;
  FileTensorSource source(model, 0, model.config.num_layers, 1000);
  ASSIGN_OR_RETURN(const auto stage, Stage::Create(ops.get(), options, source, &link));
  std::vector<double> logprobs;
  const int64_t count = static_cast<int64_t>(ids.size());
  for (int64_t begin = 0; begin < count; begin += setting.rows_a_step) {
    const int64_t end = std::min(begin + setting.rows_a_step, count);
    StageStep step = {.epoch = 1,
                      .step = static_cast<uint64_t>(begin + 1),
                      .timeout = absl::Minutes(5),
                      .sequences = {{.num_rows = end - begin,
                                     .first_position = begin,
                                     .token_ids = {ids.begin() + begin, ids.begin() + end},
                                     .blocks = {}}},
                      .logits = {}};
    for (int32_t block = 0; block * kKvBlockTokens < end; ++block) step.sequences[0].blocks.push_back(block);
    for (int64_t i = begin; i < end && i + 1 < count; ++i) {
      step.logits.push_back({.row = i - begin, .top_n = 0, .target = ids[i + 1]});
    }
    ASSIGN_OR_RETURN(const StageResult result, stage->Run(step, Deadline::In(step.timeout), nullptr, nullptr, std::stop_token()));
    for (const LogitsResult& row : result.logits) logprobs.push_back(double{row.target_logit} - row.log_sum_exp);
  }
  return logprobs;
}

struct Off {
  double largest = 0, root_mean_square = 0;
  double most = 0;  // nine of ten tokens are off by less
};

class GoldenModels : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = PathOf(GetParam());
    if (path_.empty()) GTEST_SKIP() << GetParam() << ".gguf is not here: ../shared/golden has it";
    const std::string type = TypeNotComputed(path_ + ".gguf");
    if (!type.empty()) GTEST_SKIP() << GetParam() << " has tensors of type " << type << ", which Ferry does not compute with";
    model_ = TinyModel::Open(path_ + ".gguf");
    ASSERT_OK(CheckModelTensors(model_->config, *model_->file));
    for (const TensorInfo& tensor : model_->file->tensors()) quantised_ |= tensor.dtype != DType::kF32;
  }
  bool quantised() const { return quantised_; }

  // Over all prompts.
  Off Compare(const Setting& setting) {
    std::ifstream file(path_ + ".json");
    const nlohmann::json figures = nlohmann::json::parse(file);
    Off off;
    std::vector<double> differences;
    for (const auto& golden : figures["cases"]) {
      const std::vector<double> want = golden["logprob"];
      const absl::StatusOr<std::vector<double>> got = Score(*model_, golden["ids"], setting);
      EXPECT_OK(got);
      if (!got.ok() || got->size() != want.size()) return {.largest = INFINITY, .root_mean_square = INFINITY};
      for (size_t i = 0; i < want.size(); ++i) {
        const double difference = std::abs((*got)[i] - want[i]);
        off.largest = difference <= off.largest ? off.largest : difference;  // a NaN stays
        off.root_mean_square += difference * difference;
        differences.push_back(difference);
      }
    }
    off.root_mean_square = std::sqrt(off.root_mean_square / static_cast<double>(differences.size()));
    std::sort(differences.begin(), differences.end());
    off.most = differences[differences.size() * 9 / 10];
    std::printf("%s, %s, cache in %s: largest difference %.1e, nine of ten below %.1e, root mean square %.1e\n", GetParam(),
                setting.backend, std::string(NameOf(setting.kv_type)).c_str(), off.largest, off.most, off.root_mean_square);
    return off;
  }

  std::string path_;
  std::unique_ptr<TinyModel> model_;
  bool quantised_ = false;
};

TEST_P(GoldenModels, ReferenceIsWithinARoundingOfFloats) {
  const Off off = Compare({.backend = "reference", .kv_type = DType::kF32});
  EXPECT_TRUE(off.largest <= 2e-4) << off.largest;
}

TEST_P(GoldenModels, ACacheInF16CostsLittle) {
  const Off off = Compare({.backend = "reference", .kv_type = DType::kF16});
  EXPECT_TRUE(off.largest <= 0.04) << off.largest;
  EXPECT_TRUE(off.root_mean_square <= 0.01) << off.root_mean_square;
}

TEST_P(GoldenModels, FastKernelsAreCloseToThem) {
  const Off off = Compare({.backend = "cpu", .kv_type = DType::kF16});
  EXPECT_TRUE(off.root_mean_square <= (quantised() ? 0.10 : 0.03)) << off.root_mean_square;
}

TEST_P(GoldenModels, AGpuIsCloseToThem) {
  if (NumCudaDevices() == 0) GTEST_SKIP() << "no GPU on this machine";
  const std::unique_ptr<Ops> ops = MakeOps("cuda");
  absl::Status runs = ops->CheckModel(model_->config);
  for (const TensorInfo& tensor : model_->file->tensors()) {
    if (runs.ok()) runs = ops->CheckWeights(tensor.dtype);
  }
  if (absl::IsUnimplemented(runs)) GTEST_SKIP() << runs.message();
  ASSERT_OK(runs);
  const Off off = Compare({.backend = "cuda", .kv_type = DType::kF16});
  if (off.root_mean_square <= (quantised() ? 0.10 : 0.03)) return;
  // A router of random weights may choose other experts after any rounding, which throws a few tokens far off. The reference with
  // the same roundings tells that from a fault.
  const Off rounded = Compare({.backend = "reference-bf16", .kv_type = DType::kF16});
  EXPECT_TRUE(off.most <= 1.2 * rounded.most) << off.most << " after " << rounded.most;
}

std::string NameOfModel(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Bundled, GoldenModels, ::testing::ValuesIn(kBundled), NameOfModel);
INSTANTIATE_TEST_SUITE_P(Shared, GoldenModels, ::testing::ValuesIn(kShared), NameOfModel);

}  // namespace
}  // namespace ferry
