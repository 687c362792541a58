// The same request gives the same bits for any division of the work and any transport.

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "kernels/ops.h"
#include "tests/cluster/cluster.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr uint32_t kTokens = 24;
constexpr size_t kPrompt = 300;  // more than the sliding window, more than one chunk below

// What one worker gives with nothing shipped: what everything else is held against. Computed once.
const Completion& Plain() {
  static const Completion* const plain = [] {
    const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect("", DemoModel(1));
    if (!client.ok()) return new Completion;
    const absl::StatusOr<Completion> got = Greedy(**client, SomePrompt(kPrompt), kTokens, /*prompt_logprobs=*/true);
    return new Completion(got.ok() ? *got : Completion());
  }();
  return *plain;
}

void ExpectSame(const ModelOptions& options) {
  ASSERT_EQ(Plain().ids.size(), kTokens);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  ASSERT_OK_AND_ASSIGN(const Completion got, Greedy(*client, SomePrompt(kPrompt), kTokens, /*prompt_logprobs=*/true));
  EXPECT_EQ(got.ids, Plain().ids);
  EXPECT_EQ(got.logprobs, Plain().logprobs);
  EXPECT_EQ(got.prompt_logprobs, Plain().prompt_logprobs);
}

class Workers : public ::testing::TestWithParam<int> {};
TEST_P(Workers, AnyNumberGivesTheSameBits) { ExpectSame(DemoModel(GetParam())); }
INSTANTIATE_TEST_SUITE_P(, Workers, ::testing::Values(2, 3, 6));

class Slots : public ::testing::TestWithParam<const char*> {};
TEST_P(Slots, FewOrAllGiveTheSameBits) {
  ModelOptions options = DemoModel(2);
  options.vram_experts = GetParam();
  ExpectSame(options);
}
INSTANTIATE_TEST_SUITE_P(, Slots, ::testing::Values("400KiB", "2MiB", "64MiB"));

// All experts have slots; each of `forget` is a prompt, before which they are emptied or not.
void ExpectSameWithSlots(const ModelOptions& without_slots, const std::vector<bool>& forget) {
  ASSERT_EQ(Plain().ids.size(), kTokens);
  ModelOptions options = without_slots;
  options.vram_experts = "64MiB";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  proto::GenerateRequest request;
  const std::vector<uint32_t> prompt = SomePrompt(kPrompt);
  request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.set_max_tokens(0);
  request.set_prompt_logprobs(1);
  for (const bool cold : forget) {
    request.set_forget_experts(cold);
    std::vector<float> logprobs;
    ASSERT_OK_AND_ASSIGN(const proto::Finish finish, client->Generate(request, [&](const proto::GenerateResponse& response) {
      for (const proto::PositionLogprobs& position : response.prompt_logprobs()) logprobs.push_back(position.logprob());
      return true;
    }));
    const proto::ExpertCounters& experts = finish.experts();
    EXPECT_EQ(experts.resident(), cold ? 0 : experts.activated()) << experts.ShortDebugString();
    EXPECT_EQ(experts.activated(), experts.resident() + experts.shipped() + experts.on_host());
    EXPECT_EQ(logprobs, Plain().prompt_logprobs);
  }
}

TEST(SameEverywhere, WithEveryExpertInASlotAndWithAllForgotten) { ExpectSameWithSlots(DemoModel(2), {false, true}); }

TEST(SameEverywhere, WithWorkersThatHelpEachOther) {
  ModelOptions options = DemoModel(3);
  options.share_links = "even";
  ExpectSameWithSlots(options, {true, true, true, true});
}

TEST(SameEverywhere, WithExpertsReadWhereTheyLie) {
  ModelOptions options = DemoModel(2);
  options.unified = "on";
  ExpectSame(options);
}

TEST(SameEverywhere, WithoutOoae) {
  ModelOptions options = DemoModel(2);
  options.vram_experts = "2MiB";
  options.ooae = false;
  ExpectSame(options);
}

void ExpectSameOver(const std::string& transport, const std::string& slots) {
  ModelOptions options = DemoModel(2);
  options.expert_transport = transport;
  options.vram_experts = slots;
  ExpectSame(options);
}

TEST(SameEverywhere, OverGrpc) { ExpectSameOver("grpc", /*slots=*/""); }
TEST(SameEverywhere, OverGrpcWithSlots) { ExpectSameOver("grpc", "2MiB"); }
TEST(SameEverywhere, OverTcp) { ExpectSameOver("tcp", /*slots=*/""); }
TEST(SameEverywhere, OverTcpWithSlots) { ExpectSameOver("tcp", "2MiB"); }

TEST(SameEverywhere, InSmallChunks) {
  ModelOptions options = DemoModel(2);
  options.batch = 96;
  options.micro_batch = 40;
  ExpectSame(options);
}

TEST(SameEverywhere, WithOverrides) {
  ModelOptions options = DemoModel(2);
  options.vram_experts = "2MiB";
  options.overrides = {R"(blk\.[01]\.ffn_.*_exps=cpu)", R"(blk\.5\.ffn_.*_exps=gpu1)"};
  ExpectSame(options);
}

TEST(SameEverywhere, AmongEightOthers) {
  ASSERT_EQ(Plain().ids.size(), kTokens);
  ModelOptions options = DemoModel(2);
  options.parallel = 9;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  std::vector<std::thread> others;
  for (int i = 0; i < 8; ++i) {
    others.emplace_back([&, i] { EXPECT_OK(Greedy(*client, SomePrompt(20 + 37 * i), 40 + i)); });
  }
  const absl::StatusOr<Completion> got = Greedy(*client, SomePrompt(kPrompt), kTokens, /*prompt_logprobs=*/true);
  for (std::thread& other : others) other.join();
  ASSERT_OK(got);
  EXPECT_EQ(got->ids, Plain().ids);
  EXPECT_EQ(got->logprobs, Plain().logprobs);
  EXPECT_EQ(got->prompt_logprobs, Plain().prompt_logprobs);
}

TEST(SameEverywhere, WithThePrefixInTheCache) {
  ASSERT_EQ(Plain().ids.size(), kTokens);
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", DemoModel(2)));
  ASSERT_OK(Greedy(*client, SomePrompt(kPrompt - 60), 1));
  ASSERT_OK_AND_ASSIGN(const Completion got, Greedy(*client, SomePrompt(kPrompt), kTokens));
  EXPECT_GT(got.finish.cached_prompt_tokens(), 0u);
  EXPECT_EQ(got.ids, Plain().ids);
  EXPECT_EQ(got.logprobs, Plain().logprobs);
}

// The second turn of a conversation, another conversation in between. The demo model has sliding layers.
struct Memory {
  const char* name;
  int64_t context;  // tokens of device memory: of one conversation, or of both
  const char* cache_ram;
  uint32_t cached;  // of the second turn's prompt
};

class SecondTurn : public ::testing::TestWithParam<Memory> {};

TEST_P(SecondTurn, ComputesItsNewTokensAloneAndGivesTheSameBits) {
  ModelOptions options = DemoModel(2);
  options.parallel = 1;
  options.context = GetParam().context;
  options.cache_ram = GetParam().cache_ram;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Client> client, Client::Connect("", options));
  std::vector<uint32_t> prompt = SomePrompt(kPrompt);
  ASSERT_OK_AND_ASSIGN(const Completion first, Greedy(*client, prompt, kTokens));
  std::vector<uint32_t> other = SomePrompt(kPrompt);
  std::reverse(other.begin(), other.end());
  ASSERT_OK(Greedy(*client, other, kTokens));
  prompt.insert(prompt.end(), first.ids.begin(), first.ids.end());
  prompt.insert(prompt.end(), other.begin(), other.begin() + 20);
  ASSERT_OK_AND_ASSIGN(const Completion second, Greedy(*client, prompt, kTokens));
  EXPECT_EQ(second.finish.cached_prompt_tokens(), GetParam().cached);
  ASSERT_OK_AND_ASSIGN(const Completion anew, Greedy(*client, prompt, kTokens, /*prompt_logprobs=*/true));
  EXPECT_EQ(anew.finish.cached_prompt_tokens(), 0u) << "all its rows were computed";
  EXPECT_EQ(second.ids, anew.ids);
  EXPECT_EQ(second.logprobs, anew.logprobs);
}

// The last token that was generated never went through the model.
constexpr uint32_t kFirstTurn = kPrompt + kTokens - 1;
INSTANTIATE_TEST_SUITE_P(, SecondTurn,
                         ::testing::Values(Memory{"FromDeviceMemory", 2048, "256MiB", kFirstTurn},
                                           Memory{"FromHostMemory", 384, "256MiB", kFirstTurn},
                                           Memory{"WithoutHostMemory", 2048, "0", 0}),
                         [](const auto& info) { return std::string(info.param.name); });

// A GPU's products and the host's round differently, so the bits are compared where the same side computes: with all experts
// placed on the GPU.
TEST(SameEverywhere, OnAGpuWithAnySlotsAndWithoutOoae) {
  if (NumCudaDevices() == 0) GTEST_SKIP() << "no GPU here";
  const auto run = [](const std::string& slots, bool ooae) -> absl::StatusOr<Completion> {
    ModelOptions options = DemoModel(1);
    options.backend = "cuda";
    if (slots == "in place") {
      options.unified = "on";
    } else {
      options.vram_experts = slots;
    }
    options.ooae = ooae;
    options.overrides = {"exps=gpu0"};
    ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect("", options));
    return Greedy(*client, SomePrompt(kPrompt), kTokens, /*prompt_logprobs=*/true);
  };
  ASSERT_OK_AND_ASSIGN(const Completion all, run("64MiB", true));
  for (const char* slots : {"400KiB", "2MiB", "8MiB", "in place"}) {
    for (const bool ooae : {true, false}) {
      if (!ooae && slots == std::string("in place")) continue;  // nothing is copied
      ASSERT_OK_AND_ASSIGN(const Completion got, run(slots, ooae));
      EXPECT_EQ(got.ids, all.ids) << slots << ", ooae " << ooae;
      EXPECT_EQ(got.logprobs, all.logprobs) << slots << ", ooae " << ooae;
      EXPECT_EQ(got.prompt_logprobs, all.prompt_logprobs) << slots << ", ooae " << ooae;
    }
  }
}

// Hidden states go from device to device through memory that both workers pin. Where there is one GPU, both use it.
TEST(SameEverywhere, OnTwoGpusAsOnOne) {
  if (NumCudaDevices() == 0) GTEST_SKIP() << "no GPU here";
  const auto run = [](const char* gpus, int workers, const char* transport) -> absl::StatusOr<Completion> {
    ModelOptions options = DemoModel(workers);
    options.backend = "cuda";
    options.gpus = gpus;
    options.vram_experts = "64MiB";
    options.expert_transport = transport;
    ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::Connect("", options));
    return Greedy(*client, SomePrompt(kPrompt), kTokens, /*prompt_logprobs=*/true);
  };
  const char* const two = NumCudaDevices() > 1 ? "0,1" : "0,0";
  ASSERT_OK_AND_ASSIGN(const Completion one, run("0", 1, "shm"));
  for (const char* transport : {"shm", "tcp", "grpc"}) {
    ASSERT_OK_AND_ASSIGN(const Completion got, run(two, 2, transport));
    EXPECT_EQ(got.ids, one.ids) << transport;
    EXPECT_EQ(got.logprobs, one.logprobs) << transport;
    EXPECT_EQ(got.prompt_logprobs, one.prompt_logprobs) << transport;
  }
}

}  // namespace
}  // namespace ferry
