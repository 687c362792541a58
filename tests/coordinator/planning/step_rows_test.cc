#include "coordinator/planning/step_rows.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace ferry {
namespace {

// Six layers of gpt-oss-120b's shape on an H200.
ModelConfig Config() {
  ModelConfig config;
  config.num_layers = 12;
  config.n_embd = 2880;
  config.router = {.num_experts = 128, .top_k = 4};
  config.layers.resize(12, {.attention = {.num_heads = 64, .num_kv_heads = 8, .head_dim = 64}, .mlp = {}, .experts = true});
  return config;
}
ArenaLayout Arena() {
  const ExpertLayout layer = ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, 2880, 2880, true).value();
  return ArenaLayout::Create(std::vector<std::optional<ExpertLayout>>(12, layer), 128).value();
}
double Cost(int64_t slots, double link = 55e9, double flops = 540e12) {
  const WorkerCapacity worker = {.layers = {0, 6}, .slots = slots, .link_bytes_per_second = link, .flops_per_second = flops};
  return StepCostRows(Config(), Arena(), {&worker, 1});
}

TEST(StepCostRows, IsAboutAThousandWhenNothingIsCopied) {
  EXPECT_GT(Cost(6 * 128), 500);
  EXPECT_LT(Cost(6 * 128), 1500);
}

TEST(StepCostRows, GrowsWithWhatEveryStepCopiesAnew) {
  EXPECT_GT(Cost(300), 2 * Cost(6 * 128));
  EXPECT_GT(Cost(30), Cost(300));
  EXPECT_GT(Cost(300, /*link=*/10e9), 2 * Cost(300));
}

TEST(StepCostRows, IsEndlessWhereTheHostComputesOrNothingIsKnown) {
  EXPECT_TRUE(std::isinf(Cost(0)));
  EXPECT_TRUE(std::isinf(Cost(300, 0)));
  EXPECT_TRUE(std::isinf(Cost(300, 55e9, 0)));
}

TEST(StepRows, CutsLongPromptsIntoEqualParts) {
  EXPECT_EQ(StepRows(16384, 2, 1000), 4096);
  EXPECT_EQ(StepRows(4096, 2, 1000), 2048);
  EXPECT_EQ(StepRows(1000, 2, 1000), 1000);
  EXPECT_EQ(StepRows(16384, 5, 1000), 2048) << "more workers, shorter steps";
  EXPECT_EQ(StepRows(10, 2, 0), 4) << "three of them";
}

TEST(StepRows, CutsNothingForOneWorkerOrAnEndlessCost) {
  EXPECT_EQ(StepRows(16384, 1, 1000), 16384);
  EXPECT_EQ(StepRows(16384, 4, std::numeric_limits<double>::infinity()), 16384);
  EXPECT_EQ(StepRows(1, 4, 1), 1);
  EXPECT_EQ(StepRows(0, 4, 1), 0);
}

}  // namespace
}  // namespace ferry
