// The forward pass against HF transformers' float32 figures for the demo model (golden.json), with plain kernels and a KV cache
// in F32, so that what differs is the order of sums alone.

#include <cmath>
#include <fstream>

#include "common/deadline.h"
#include "nlohmann/json.hpp"
#include "tests/testing/source_path.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

// The natural logarithm of each next token's probability, the text going through in steps of `rows_a_step`.
absl::StatusOr<std::vector<double>> Score(const TinyModel& model, const std::vector<int32_t>& ids, int64_t rows_a_step) {
  const auto ops = MakeOps("reference"), host_ops = MakeOps("reference");
  FakeLink link(&model, host_ops.get());
  StageOptions options = TinyStageOptions(model, 0, model.config.num_layers);
  options.kv = {.key_type = DType::kF32, .value_type = DType::kF32, .num_blocks = 64, .num_slots = 1, .ring_blocks = 6};
  options.model.context_length = 2048;
  FileTensorSource source(model, 0, model.config.num_layers, 1000);
  ASSIGN_OR_RETURN(const auto stage, Stage::Create(ops.get(), options, source, &link));
  std::vector<double> logprobs;
  for (int64_t begin = 0; begin < static_cast<int64_t>(ids.size()); begin += rows_a_step) {
    const int64_t end = std::min<int64_t>(begin + rows_a_step, ids.size());
    StageStep step = {.epoch = 1,
                      .step = static_cast<uint64_t>(begin + 1),
                      .timeout = absl::Minutes(5),
                      .sequences = {{.num_rows = end - begin,
                                     .first_position = begin,
                                     .token_ids = {ids.begin() + begin, ids.begin() + end},
                                     .blocks = {}}},
                      .logits = {}};
    for (int32_t block = 0; block * kKvBlockTokens < end; ++block) step.sequences[0].blocks.push_back(block);
    for (int64_t i = begin; i < end && i + 1 < static_cast<int64_t>(ids.size()); ++i) {
      step.logits.push_back({.row = i - begin, .top_n = 0, .target = ids[i + 1]});
    }
    ASSIGN_OR_RETURN(const StageResult result, stage->Run(step, Deadline::In(step.timeout), nullptr, nullptr, std::stop_token()));
    for (const LogitsResult& row : result.logits) logprobs.push_back(double{row.target_logit} - row.log_sum_exp);
  }
  return logprobs;
}

TEST(Golden, EveryNextTokensLogProbabilityIsWithinAThousandth) {
  const auto model = TinyModel::Open(SourcePath("models/demo-moe.gguf"));
  std::ifstream file(SourcePath("tests/cluster/testdata/golden.json"));
  ASSERT_TRUE(file.good());
  const nlohmann::json figures = nlohmann::json::parse(file);
  int passages = 0;
  for (const auto& golden : figures["cases"]) {
    if (!golden.contains("logprob")) continue;
    ++passages;
    const std::vector<double> want = golden["logprob"];
    ASSERT_OK_AND_ASSIGN(const std::vector<double> got, Score(*model, golden["ids"], /*rows_a_step=*/250));
    ASSERT_EQ(got.size(), want.size());
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double difference = std::abs(got[i] - want[i]);
      EXPECT_TRUE(difference <= 1e-3) << "token " << i + 1 << ": " << got[i] << ", want " << want[i];  // a NaN fails
      worst = std::max(worst, difference);
    }
    std::printf("passage %d: the largest difference is %.1e\n", passages, worst);
  }
  EXPECT_EQ(passages, 3);
}

}  // namespace
}  // namespace ferry
