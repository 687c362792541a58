// The rules of same_everywhere_test.cc for every architecture: layers without experts among the workers, latent caches, head
// norms, states of delta nets.

#include <algorithm>

#include "common/model/make_model.h"
#include "tests/cluster/cluster.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr uint32_t kModelTokens = 12;
constexpr size_t kModelPrompt = 130;

ModelOptions Serving(const std::string& name, int workers) {
  ModelOptions options = DemoModel(workers);
  options.model = SourcePath("tests/worker/testdata/" + name + ".gguf");
  return options;
}

std::vector<uint32_t> Prompt() {
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < kModelPrompt; ++i) ids.push_back((i * i * 7 + 3 * i + 11) % 400);
  return ids;
}

absl::StatusOr<Completion> Served(const ModelOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect("", options));
  return Greedy(*client, Prompt(), kModelTokens, /*prompt_logprobs=*/true);
}

struct Model {
  const char* name;
  const char* layers_of_three;  // workers; the first one has a dense layer alone where the model has one
};
class EveryModel : public ::testing::TestWithParam<Model> {};

TEST_P(EveryModel, GivesTheSameBitsHoweverItIsServed) {
  ASSERT_OK_AND_ASSIGN(const Completion plain, Served(Serving(GetParam().name, 1)));
  ASSERT_EQ(plain.ids.size(), kModelTokens);

  ModelOptions two = Serving(GetParam().name, 2);
  two.vram_experts = "200KiB";  // a few slots
  two.batch = 48;
  two.micro_batch = 40;
  ASSERT_OK_AND_ASSIGN(const Completion few_slots, Served(two));
  EXPECT_TRUE(few_slots == plain);

  ModelOptions three = Serving(GetParam().name, 3);
  three.layers = GetParam().layers_of_three;
  three.vram_experts = "64MiB";
  three.expert_transport = "tcp";
  ASSERT_OK_AND_ASSIGN(const Completion all_slots, Served(three));
  EXPECT_TRUE(all_slots == plain);
}

INSTANTIATE_TEST_SUITE_P(, EveryModel,
                         ::testing::Values(Model{"qwen3moe-f32", "0-0,1-1,2-2"}, Model{"glm4moe-f32", "0-0,1-1,2-2"},
                                           Model{"deepseek2-lite-f32-old", "0-0,1-1,2-2"},
                                           Model{"deepseek2-v3-f32", "0-0,1-1,2-2"}, Model{"qwen3next-f32", "0-0,1-2,3-4"}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// As on a machine with eight GPUs.
TEST(EightWorkers, GiveTheBitsOfOne) {
  const std::string model = ::testing::TempDir() + "/ten_layers.gguf";
  MakeModelOptions shape;
  shape.layers = 10;
  ASSERT_OK(MakeModelFile(shape, model, {.force = true}));
  ModelOptions one = DemoModel(1);
  one.model = model;
  ASSERT_OK_AND_ASSIGN(const Completion plain, Served(one));
  ASSERT_EQ(plain.ids.size(), kModelTokens);

  ModelOptions eight = DemoModel(8);
  eight.model = model;
  ASSERT_OK_AND_ASSIGN(const Completion on_host, Served(eight));
  EXPECT_TRUE(on_host == plain);

  eight.vram_experts = "60KiB";  // a few slots each, filled by each other's links too
  eight.share_links = "even";
  eight.batch = 48;
  eight.micro_batch = 40;
  ASSERT_OK_AND_ASSIGN(const Completion helped, Served(eight));
  EXPECT_TRUE(helped == plain);

  eight.transport = "grpc";
  eight.expert_transport = "grpc";
  eight.layers = "0-0,1-1,2-2,3-3,4-4,5-6,7-8,9-9";
  ASSERT_OK_AND_ASSIGN(const Completion by_messages, Served(eight));
  EXPECT_TRUE(by_messages == plain);
}

}  // namespace
}  // namespace ferry
