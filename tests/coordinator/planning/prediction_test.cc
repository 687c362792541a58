#include "coordinator/planning/prediction.h"

#include <numeric>

#include "common/model/make_model.h"
#include "common/model/model_tensors.h"
#include "coordinator/experts/expert_store.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

// A model of 4 layers with 32 experts, 4 for each token, on a machine that the test makes up.
class PredictionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(bytes_, MakeModelBytes({.layers = 4, .experts = 32, .top_k = 4, .router_bias_spread = 1.5}));
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Parse(bytes_));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(file));
    ASSERT_OK_AND_ASSIGN(sizes_, ModelSizesOf(file, config_));
    ASSERT_OK_AND_ASSIGN(arena_, ArenaLayoutOf(file, config_));
    ASSERT_OK_AND_ASSIGN(routing_, RoutingProbabilities(file, config_));
    Place(1, 2048);
    record_bytes_ = static_cast<double>(arena_.layer(0).bytes);
  }
  void Place(int64_t num_workers, int64_t batch) {
    ASSERT_OK_AND_ASSIGN(
        placement_, PlanPlacement(config_, sizes_, {.num_workers = num_workers, .context_tokens = 16384, .batch_tokens = batch}));
  }
  // A machine whose copies take a second an expert, and whose host and GPUs take next to nothing, unless changed.
  PredictionInput SlowLink(int64_t slots) {
    const ExpertRates fast = {.read_bytes_per_second = 1e18, .flops_per_second = 1e20};
    MachineRates rates{.host = fast, .host_beside_links = fast};
    for (size_t w = 0; w < placement_.workers.size(); ++w) {
      rates.workers.push_back(
          {.link = {.alone = 2 * record_bytes_, .together = record_bytes_, .beside_host = record_bytes_}, .experts = fast});
    }
    return {.config = config_,
            .sizes = sizes_,
            .arena = arena_,
            .placement = placement_,
            .routing = routing_,
            .rates = rates,
            .slots = std::vector<int64_t>(placement_.workers.size(), slots),
            .gpu = true};
  }

  std::vector<std::byte> bytes_;
  ModelConfig config_;
  ModelSizes sizes_;
  ArenaLayout arena_;
  Placement placement_;
  std::vector<std::vector<double>> routing_;
  double record_bytes_ = 0;
};

TEST_F(PredictionTest, RoutesEveryTokenToTopKExperts) {
  ASSERT_EQ(routing_.size(), 4u);
  for (const std::vector<double>& layer : routing_) {
    EXPECT_NEAR(std::accumulate(layer.begin(), layer.end(), 0.0), 4, 0.15) << "within the sampling's error";
    for (const double p : layer) EXPECT_GT(p, 0) << "an expert that is never drawn may still be used by somebody";
    EXPECT_GT(*std::max_element(layer.begin(), layer.end()), 0.3) << "biases spread the experts";
  }
}

TEST_F(PredictionTest, CountsEveryActivatedExpertInOnePlace) {
  for (const int64_t tokens : {1, 64, 1000, 5000}) {
    const PrefillPrediction prediction = PredictPrefill(SlowLink(20), tokens);
    EXPECT_DOUBLE_EQ(prediction.activated, prediction.resident + prediction.shipped + prediction.on_host) << tokens;
    EXPECT_GT(prediction.seconds, 0);
  }
  double expected = 0;
  for (const std::vector<double>& layer : routing_) expected += ExpectedActivated(layer, 1000);
  EXPECT_NEAR(PredictPrefill(SlowLink(0), 1000).activated, expected, 0.1 * expected) << "one draw of them";
}

TEST_F(PredictionTest, WithoutSlotsTheHostComputesAll) {
  PredictionInput input = SlowLink(0);
  input.rates.host_beside_links = {.read_bytes_per_second = record_bytes_, .flops_per_second = 1e20};  // a second an expert
  const PrefillPrediction prediction = PredictPrefill(input, 500);
  EXPECT_EQ(prediction.shipped, 0);
  EXPECT_EQ(prediction.on_host, prediction.activated);
  EXPECT_NEAR(prediction.seconds, prediction.activated, 0.05);
}

TEST_F(PredictionTest, TakesTheLinksRateBesideTheHost) {
  PredictionInput input = SlowLink(128);
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};  // the host had better not
  const PrefillPrediction prediction = PredictPrefill(input, 1000);
  EXPECT_EQ(prediction.on_host, 0);
  EXPECT_NEAR(prediction.seconds, prediction.bytes_shipped / record_bytes_, 0.01);
}

TEST_F(PredictionTest, CopiesAheadUntilAPlanSaysThatTheHostIsFaster) {
  const PrefillPrediction few = PredictPrefill(SlowLink(10), 1000);
  EXPECT_EQ(few.on_host, few.activated);
  EXPECT_GE(few.bytes_shipped, 8 * record_bytes_) << "for the first layer, in vain: two of ten slots are in use";
  EXPECT_LT(few.bytes_shipped, 12 * record_bytes_) << "of the others only what looked heavier than all that went to the host";
  EXPECT_EQ(PredictPrefill(SlowLink(128), 5).bytes_shipped, 0) << "a step of so few rows routes first, and is not planned";
}

TEST_F(PredictionTest, TakesSlotsForEveryExpertToBeFilledAtLoad) {
  PredictionInput input = SlowLink(config_.num_layers * arena_.num_experts());
  const PrefillPrediction filled = PredictPrefill(input, 1000);
  EXPECT_EQ(filled.resident, filled.activated);
  EXPECT_EQ(filled.bytes_shipped, 0);
  input.cold = true;
  EXPECT_EQ(PredictPrefill(input, 1000).resident, 0);
}

TEST_F(PredictionTest, FindsWhatAnEarlierPassLeft) {
  Place(1, 500);
  PredictionInput input = SlowLink(128);
  input.cold = true;
  const PrefillPrediction one = PredictPrefill(input, 500), four = PredictPrefill(input, 2000);
  EXPECT_EQ(one.resident, 0);
  EXPECT_GT(four.resident, 2 * one.shipped);
  EXPECT_LT(four.bytes_shipped, 1.5 * one.bytes_shipped);
}

TEST_F(PredictionTest, PassesFollowEachOtherThroughTheWorkers) {
  Place(1, 500);
  PredictionInput one = SlowLink(0);
  one.rates.host_beside_links.read_bytes_per_second = record_bytes_;
  const double alone = PredictPrefill(one, 2000).seconds;
  Place(2, 500);
  PredictionInput two = SlowLink(0);
  two.rates.host_beside_links.read_bytes_per_second = record_bytes_;
  const double both = PredictPrefill(two, 2000).seconds;
  EXPECT_NEAR(both, alone * 5 / 8, 0.05 * alone) << "four passes of two halves";
}

TEST_F(PredictionTest, AWorkerThatAwaitsRowsCopiesMeanwhile) {
  Place(2, 2000);
  PredictionInput input = SlowLink(128);
  input.cold = true;
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};  // the host had better not
  const PrefillPrediction prediction = PredictPrefill(input, 1000);
  EXPECT_EQ(prediction.shipped, prediction.activated);
  EXPECT_LT(prediction.seconds, 0.7 * prediction.bytes_shipped / record_bytes_) << "two links, and the second starts at once";
}

TEST_F(PredictionTest, WorkersWithNothingElseToDoHelp) {
  Place(2, 2000);
  PredictionInput input = SlowLink(16);  // so few that the second worker is soon done copying for itself
  input.cold = true;
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};
  const PrefillPrediction alone = PredictPrefill(input, 1000);
  input.help = true;
  const PrefillPrediction helped = PredictPrefill(input, 1000);
  EXPECT_EQ(alone.helped, 0);
  EXPECT_GT(helped.helped, 0.2 * helped.activated);
  EXPECT_EQ(helped.shipped, helped.activated);
  EXPECT_LT(helped.seconds, 0.8 * alone.seconds);
  input.gpu = false;
  EXPECT_EQ(PredictPrefill(input, 1000).helped, 0);
}

// The last worker is on another host, a second of a row's bytes away.
void PutLastElsewhere(double exchange_seconds, PredictionInput* input) {
  input->networks.resize(input->placement.workers.size());
  input->networks.back() = {.host = 1,
                            .exchange_seconds = exchange_seconds,
                            .bytes_per_second = static_cast<double>(input->config.n_embd) * sizeof(float)};
}

TEST_F(PredictionTest, ARowThatTheFirstHostComputesForAnotherCrossesTheNetwork) {
  Place(2, 500);
  PredictionInput input = SlowLink(0);
  const double here = PredictDecode(input).seconds_per_token;
  PutLastElsewhere(0.125, &input);
  // In each of two layers an exchange, the row and four contributions; before them the hidden state, in half an exchange.
  EXPECT_NEAR(PredictDecode(input).seconds_per_token - here, 2 * (0.125 + 1 + 4) + 0.0625 + 1, 0.1);
}

TEST_F(PredictionTest, ARowWhoseExpertsAreInSlotsCrossesTheNetworkOnce) {
  Place(2, 500);
  PredictionInput input = SlowLink(128);
  const double here = PredictDecode(input).seconds_per_token;
  const PrefillPrediction prefill = PredictPrefill(input, 100);
  PutLastElsewhere(0.125, &input);
  EXPECT_NEAR(PredictDecode(input).seconds_per_token - here, 0.0625 + 1, 0.02);
  const PrefillPrediction over = PredictPrefill(input, 100);
  EXPECT_EQ(over.step_rows, prefill.step_rows);
  EXPECT_NEAR(over.seconds - prefill.seconds, 100, 2) << "a hundred hidden states, in whatever steps";
}

TEST_F(PredictionTest, AHostOnItsOwnCoresComputesWhileTheFirstDoes) {
  Place(2, 100);
  PredictionInput input = SlowLink(0);
  input.gpu = false;
  const ExpertRates slow = {.read_bytes_per_second = 1e18, .flops_per_second = 1e6};
  input.rates.host = slow;  // dense products take long, experts do not
  for (WorkerRates& worker : input.rates.workers) worker.experts = slow;
  PutLastElsewhere(0, &input);
  input.networks.back().bytes_per_second = 1e18;
  const double apart = PredictPrefill(input, 2000).seconds;
  input.networks.back() = {};
  const double sharing = PredictPrefill(input, 2000).seconds;
  EXPECT_LT(apart, 0.7 * sharing) << "in twenty steps";
  EXPECT_GT(apart, 0.5 * sharing);
}

TEST_F(PredictionTest, HoweverManyWorkersTheFirstHostsEngineComputesAllThatIsLeftToIt) {
  Place(2, 500);
  PredictionInput input = SlowLink(0);
  input.rates.host_beside_links.read_bytes_per_second = record_bytes_;
  PutLastElsewhere(0, &input);
  input.networks.back().bytes_per_second = 1e18;
  const PrefillPrediction prediction = PredictPrefill(input, 2000);
  EXPECT_GE(prediction.seconds, 0.99 * prediction.on_host) << "a second an expert";
}

TEST_F(PredictionTest, NoWorkerHelpsOneOfAnotherHost) {
  Place(2, 2000);
  PredictionInput input = SlowLink(16);
  input.cold = input.help = true;
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};
  PutLastElsewhere(0, &input);
  EXPECT_EQ(PredictPrefill(input, 1000).helped, 0);
}

TEST_F(PredictionTest, DecodeReadsTheCacheOfWhatItIsBehind) {
  const double bytes = PredictDecode(SlowLink(128), 1 << 14).device_bytes - PredictDecode(SlowLink(128)).device_bytes;
  double expected = 0;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const AttentionConfig& attention = config_.layers[layer].attention;
    const int64_t tokens = attention.window > 0 ? attention.window : 1 << 14;
    expected += static_cast<double>(tokens * attention.kv_size()) * 2 * 2;  // keys and values of two bytes
  }
  EXPECT_EQ(bytes, expected);
}

TEST_F(PredictionTest, DecodeReadsFromTheHostWhatSlotsDoNotHold) {
  const DecodePrediction none = PredictDecode(SlowLink(0)), some = PredictDecode(SlowLink(40)),
                         all = PredictDecode(SlowLink(128));
  EXPECT_EQ(none.resident_share, 0);
  EXPECT_NEAR(none.host_bytes, 16 * record_bytes_, 1);
  EXPECT_GT(some.resident_share, 10.0 / 32) << "the ten used most of each layer are more than their share";
  EXPECT_LT(some.host_bytes, none.host_bytes);
  EXPECT_NEAR(all.resident_share, 1, 0.02);
  EXPECT_GT(none.seconds_per_token, all.seconds_per_token);
}

TEST_F(PredictionTest, DecodeBehindAColdPromptFillsTheSlots) {
  const auto with = [&](int64_t slots) {
    PredictionInput input = SlowLink(slots);
    input.rates.host.read_bytes_per_second = input.rates.host_beside_links.read_bytes_per_second = 100 * record_bytes_;
    input.rates.workers[0].link = {.alone = 50 * record_bytes_};
    return input;
  };
  const PredictionInput input = with(40);
  PrefillPrediction cold;
  cold.tokens = 100;
  const double filled = PredictDecode(input, 100).seconds_per_token, empty = PredictDecode(with(0), 100).seconds_per_token;
  const double first = PredictDecodeAfter(input, cold, 1).seconds_per_token;
  const double few = PredictDecodeAfter(input, cold, 20).seconds_per_token;
  const double many = PredictDecodeAfter(input, cold, 2000).seconds_per_token;
  EXPECT_NEAR(first, empty, 0.01 * empty);
  EXPECT_LT(few, first);
  EXPECT_LT(many, few);
  EXPECT_GT(many, filled);
  cold.shipped = 40;
  EXPECT_DOUBLE_EQ(PredictDecodeAfter(input, cold, 20).seconds_per_token, filled) << "the prefill has filled them";
  cold.shipped = 1e6;
  const double pushed_out = PredictDecodeAfter(input, cold, 1).seconds_per_token;
  EXPECT_GT(pushed_out, filled) << "later layers' experts have pushed out those of earlier ones";
  EXPECT_LT(pushed_out, empty);
}

}  // namespace
}  // namespace ferry
