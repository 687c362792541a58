#include "coordinator/planning/placement.h"

#include "common/gguf/gguf.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

ModelConfig SixLayers() {
  ModelConfig config;
  config.architecture = "gpt-oss";
  config.num_layers = 6;
  config.context_length = 131072;
  config.n_embd = 256, config.vocab_size = 4096;
  config.router = {.num_experts = 32, .top_k = 4};
  config.expert.n_ff = 192;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const AttentionConfig attention = {.num_heads = 8, .num_kv_heads = 2, .head_dim = 64, .window = layer % 2 == 0 ? 128 : 0};
    config.layers.push_back({.attention = attention, .mlp = std::nullopt, .experts = true});
  }
  return config;
}

ModelSizes EvenSizes() {
  return {.dense_bytes = std::vector<int64_t>(6, 100),
          .expert_bytes = std::vector<int64_t>(6, 1000),
          .embedding_bytes = 50,
          .output_bytes = 50};
}

absl::StatusOr<Placement> Plan(const PlacementOptions& options) { return PlanPlacement(SixLayers(), EvenSizes(), options); }

std::vector<LayerRange> Ranges(const Placement& placement) {
  std::vector<LayerRange> ranges;
  for (const WorkerPlacement& worker : placement.workers) ranges.push_back(worker.layers);
  return ranges;
}

TEST(Placement, GivesEveryWorkerAnEvenShareOfTheBytes) {
  ASSERT_OK_AND_ASSIGN(const Placement two, Plan({.num_workers = 2}));
  EXPECT_EQ(Ranges(two), (std::vector<LayerRange>{{0, 3}, {3, 6}}));
  ASSERT_OK_AND_ASSIGN(const Placement three, Plan({.num_workers = 3}));
  EXPECT_EQ(Ranges(three), (std::vector<LayerRange>{{0, 2}, {2, 4}, {4, 6}}));
}

TEST(Placement, CountsTheStatesOfDeltaNetsForEachSlot) {
  ModelConfig config = SixLayers();
  AttentionConfig net = {.kind = AttentionKind::kGatedDelta, .num_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  net.conv_taps = 4;
  for (LayerConfig& layer : config.layers) layer.attention = net;
  EXPECT_TRUE(config.keeps_states());
  const int64_t numbers = 3 * (2 * 2 + 4) * 32 + 4 * 32 * 32;
  for (const int64_t slots : {1, 5}) {
    ASSERT_OK_AND_ASSIGN(const Placement placement,
                         PlanPlacement(config, EvenSizes(), {.num_workers = 2, .context_tokens = 4096, .parallel = slots}));
    EXPECT_EQ(placement.workers[0].kv_bytes, 3 * slots * numbers * 4);
  }
}

TEST(Placement, GivesEveryWorkerALayer) {
  ASSERT_OK_AND_ASSIGN(const Placement six, Plan({.num_workers = 6}));
  for (size_t w = 0; w < 6; ++w)
    EXPECT_EQ(six.workers[w].layers, (LayerRange{static_cast<int64_t>(w), static_cast<int64_t>(w) + 1}));
}

TEST(Placement, ChargesTheOutputMatrixToTheLastWorker) {
  ModelSizes sizes = EvenSizes();
  sizes.output_bytes = 3300;  // three layers' worth
  ASSERT_OK_AND_ASSIGN(const Placement placement, PlanPlacement(SixLayers(), sizes, {.num_workers = 2}));
  EXPECT_GT(placement.workers[0].layers.end, 3);
  EXPECT_EQ(placement.workers[1].dense_bytes, 100 * (6 - placement.workers[1].layers.first) + 3300);
}

TEST(Placement, TakesTheRangesItIsGiven) {
  ASSERT_OK_AND_ASSIGN(const Placement placement, Plan({.num_workers = 2, .layers = "0-0,1-5"}));
  EXPECT_EQ(Ranges(placement), (std::vector<LayerRange>{{0, 1}, {1, 6}}));
}

TEST(Placement, RefusesRangesThatDoNotCoverTheModel) {
  const auto refused = [](const char* layers, const char* why) {
    EXPECT_THAT(Plan({.num_workers = 2, .layers = layers}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)))
        << layers;
  };
  refused("0-2,4-5", "must begin at layer 3");
  refused("0-3,3-5", "must begin at layer 4");
  refused("0-2,3-4", "the model's last is 5");
  refused("0-2,3-9", "the model's last is 5");
  refused("0-5", "1 ranges for 2 workers");
  refused("0-2,x", "want ranges such as");
}

TEST(Placement, RefusesMoreWorkersThanLayers) {
  EXPECT_THAT(Plan({.num_workers = 7}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want 1 to 6")));
}

TEST(Placement, PutsExpertsWhereTheOverridesSay) {
  ASSERT_OK_AND_ASSIGN(const Placement placement,
                       Plan({.num_workers = 2, .tensor_overrides = {R"(blk\.0\.ffn_.*_exps=cpu,blk\.[45]\.ffn_.*_exps=CUDA1)"}}));
  EXPECT_EQ(placement.expert_rules, (std::vector<ExpertRule>{ExpertRule::kHost, ExpertRule::kAny, ExpertRule::kAny,
                                                             ExpertRule::kAny, ExpertRule::kDevice, ExpertRule::kDevice}));
}

TEST(Placement, TakesTheFirstRuleThatMatches) {
  ASSERT_OK_AND_ASSIGN(const Placement placement, Plan({.tensor_overrides = {R"(blk\.2\..*exps=gpu0)", "exps=CPU"}}));
  EXPECT_EQ(placement.expert_rules[2], ExpertRule::kDevice);
  EXPECT_EQ(placement.expert_rules[3], ExpertRule::kHost);
}

TEST(Placement, ACommaInARegularExpressionStaysThere) {
  ASSERT_OK_AND_ASSIGN(const Placement placement, Plan({.tensor_overrides = {R"(blk\.[45]{1,2}\..*exps=cpu,exps=gpu0)"}}));
  EXPECT_EQ(placement.expert_rules[3], ExpertRule::kDevice);
  EXPECT_EQ(placement.expert_rules[4], ExpertRule::kHost);
}

TEST(Placement, RefusesToSplitAnExpert) {
  EXPECT_THAT(Plan({.tensor_overrides = {"ffn_down_exps=cpu"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name them together")));
}

TEST(Placement, RefusesRulesItCannotFollow) {
  const auto refused = [](const char* rule, const char* why) {
    EXPECT_THAT(Plan({.num_workers = 2, .tensor_overrides = {rule}}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused("exps", "not REGEX=cpu");
  refused("(=cpu", "not a regular expression");
  refused("^(([a-z._0-9]+)+)+[XY]=cpu", "takes too long");
  refused("exps=tpu0", "want cpu or gpuN");
  refused("exps=gpu2", "there are 2 workers");
  refused(R"(blk\.0\.ffn_.*_exps=gpu1)", "move it with --layers");
  refused("attn=cpu", "only experts can be moved");
}

TEST(Placement, KeepsTheWindowAndOneMicroBatchInSlidingLayers) {
  ASSERT_OK_AND_ASSIGN(const Placement placement,
                       Plan({.context_tokens = 8192, .parallel = 2, .batch_tokens = 1024, .micro_batch_tokens = 100}));
  EXPECT_EQ(placement.cache.ring_blocks, (128 + 100 + 31) / 32);
  EXPECT_EQ(placement.cache.num_blocks, 8192 / 32);
  EXPECT_EQ(placement.cache.context_per_slot, 8192);
}

// Three full layers of 16 KiB a block; three sliding layers, of whose rings a state has (64 + 127 + 62) / 32 = 7 blocks.
TEST(Placement, DividesHostMemoryIntoBlocksAndStates) {
  constexpr int64_t kBlock = 3 * 2 * 2 * 32 * 64 * 2, kState = 7 * kBlock;
  ASSERT_OK_AND_ASSIGN(const Placement placement, Plan({.micro_batch_tokens = 512, .cache_ram_bytes = 400 * kBlock}));
  EXPECT_EQ(placement.cache.num_host_states, 100 * kBlock / (kState + kBlock)) << "a quarter, with a block for each state's end";
  EXPECT_EQ(placement.cache.num_host_blocks, 400 - placement.cache.num_host_states * 7);
  ASSERT_OK_AND_ASSIGN(const Placement none, Plan({}));
  EXPECT_EQ(none.cache.num_host_states, 0);
  EXPECT_EQ(none.cache.num_host_blocks, 0);
}

// Three full layers of 512 bytes a token each.
TEST(Placement, GivesTheModelsContextAsFarAsGpusAllow) {
  const auto context = [](const PlacementOptions& options) { return DefaultContextTokens(SixLayers(), options); };
  EXPECT_EQ(context({.num_workers = 1, .parallel = 2}), 8192) << "without GPUs";
  EXPECT_EQ(context({.num_workers = 1, .parallel = 2, .gpu_bytes = int64_t{24} << 30}), 131072) << "what the model was made for";
  EXPECT_EQ(context({.num_workers = 1, .parallel = 2, .gpu_bytes = 16 * 20000 * 1536}), 20000);
  EXPECT_EQ(context({.num_workers = 3, .parallel = 2, .gpu_bytes = 16 * 20000 * 1536}), 60000) << "a third of the layers each";
  EXPECT_EQ(context({.num_workers = 1, .parallel = 2, .gpu_bytes = 1 << 20}), 8192) << "never less than without GPUs";
  ASSERT_OK_AND_ASSIGN(const Placement placement, Plan({.num_workers = 1, .parallel = 2, .gpu_bytes = int64_t{24} << 30}));
  EXPECT_EQ(placement.cache.context_per_slot, 131072);
}

TEST(Placement, RefusesACacheItCannotShape) {
  EXPECT_THAT(Plan({.parallel = 0}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-np is 0")));
  EXPECT_THAT(Plan({.key_type = DType::kQ4_0}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-ctk")));
}

TEST(Placement, NeverMakesAMicroBatchLargerThanABatch) {
  ASSERT_OK_AND_ASSIGN(const Placement placement, Plan({.batch_tokens = 64}));
  EXPECT_EQ(placement.cache.micro_batch_tokens, 64);
}

TEST(Placement, TakesLongMicroBatchesOnLargeGpus) {
  const ModelConfig config = SixLayers();
  constexpr int64_t kGiB = int64_t{1} << 30;
  EXPECT_EQ(AutoMicroBatchTokens(config, 0, 4), 512) << "no GPU";
  EXPECT_EQ(AutoMicroBatchTokens(config, 80 * kGiB, 4), 4096);
  EXPECT_EQ(AutoMicroBatchTokens(config, 1 << 20, 4), 512) << "never less than without a GPU";
  EXPECT_LT(AutoMicroBatchTokens(config, kGiB, 256), AutoMicroBatchTokens(config, kGiB, 1)) << "every request has its rings";
}

TEST(Placement, TakesLongStepsWhereExpertsCrossALink) {
  const ModelConfig config = SixLayers();  // 256 * (6 + 2 * 4) bytes a row
  constexpr int64_t kGiB = int64_t{1} << 30, kMuch = 1 << 20;
  EXPECT_EQ(AutoBatchTokens(config, 0, kMuch), 2048) << "no GPU";
  EXPECT_EQ(AutoBatchTokens(config, kGiB, kMuch), 16384) << "59 MB of activations, a sixteenth is 67 MB";
  EXPECT_EQ(AutoBatchTokens(config, kGiB / 2, kMuch), 8192);
  EXPECT_EQ(AutoBatchTokens(config, 1 << 20, kMuch), 2048) << "never less than without a GPU";
  EXPECT_EQ(AutoBatchTokens(config, kGiB, 8192), 8192) << "a step has no more rows than the cache";
  EXPECT_EQ(AutoBatchTokens(config, kGiB, 8193), 16384);
  ASSERT_OK_AND_ASSIGN(const Placement gpu, Plan({.num_workers = 1, .context_tokens = 32768, .gpu_bytes = kGiB}));
  EXPECT_EQ(gpu.cache.max_batch_tokens, 16384);
  ASSERT_OK_AND_ASSIGN(const Placement told, Plan({.num_workers = 1, .batch_tokens = 512, .gpu_bytes = kGiB}));
  EXPECT_EQ(told.cache.max_batch_tokens, 512);
}

}  // namespace
}  // namespace ferry
