#include "coordinator/planning/host_plan.h"

#include "coordinator/experts/held_experts.h"
#include "coordinator/planning/decode_prediction.h"
#include "coordinator/planning/prefill_prediction.h"
#include "tests/coordinator/planning/prediction_fixture.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

// A first host without a GPU that takes a millisecond to read an expert, and other hosts behind a network.
class HostPlanTest : public PredictedModelTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(Make({.layers = 4, .experts = 32, .top_k = 4}));
    ASSERT_OK_AND_ASSIGN(placement_, PlanPlacement(config_, sizes_, {.num_workers = 1, .context_tokens = 16384}));
    rates_ = {.read_bytes_per_second = 1e3 * static_cast<double>(arena_.layer(0).bytes), .flops_per_second = 1e18};
  }
  PredictionInput Input() const {
    return {.config = config_,
            .sizes = sizes_,
            .arena = arena_,
            .placement = placement_,
            .routing = routing_,
            .rates = {.host = rates_, .host_beside_links = rates_, .workers = {WorkerRates()}},
            .slots = {0}};
  }
  // One that reads `times` as long as the first host.
  CandidateHost Other(double times, double exchange_seconds = 10e-6) const {
    return {.memory_bytes = int64_t{8} << 30,
            .rates = {.read_bytes_per_second = rates_.read_bytes_per_second / times, .flops_per_second = 1e18},
            .exchange_seconds = exchange_seconds,
            .bytes_per_second = 1e12};
  }
  double DecodeWith(const std::vector<CandidateHost>& candidates) const {
    PredictionInput input = Input();
    ChooseExpertHosts(candidates, kEntries, &input);
    return PredictDecode(input).seconds_per_token;
  }
  double PrefillWith(const std::vector<CandidateHost>& candidates, int64_t tokens) const {
    PredictionInput input = Input();
    ChooseExpertHosts(candidates, kEntries, &input);
    return PredictPrefill(input, tokens).seconds;
  }

  static constexpr int64_t kEntries = 4096;
  ExpertRates rates_;
};

TEST_F(HostPlanTest, ASecondHostThatIsAsFastReadsHalfOfWhatATokenNeeds) {
  PredictionInput input = Input();
  const double alone = PredictDecode(input).seconds_per_token;
  const std::vector<HostUse> uses = ChooseExpertHosts({Other(1)}, kEntries, &input);
  ASSERT_EQ(uses.size(), 1u);
  EXPECT_TRUE(uses[0].used) << uses[0].why;
  EXPECT_EQ(uses[0].records, arena_.num_records());
  EXPECT_EQ(uses[0].bytes, arena_.bytes());
  const DecodePrediction decode = PredictDecode(input);
  EXPECT_NEAR(alone - decode.seconds_per_token, 4 * 2e-3, 0.5e-3) << "two of four experts in each of four layers";
  ASSERT_EQ(decode.expert_host_bytes.size(), 1u);
  EXPECT_NEAR(decode.expert_host_bytes[0] / decode.host_expert_bytes, 0.5, 0.02);
}

TEST_F(HostPlanTest, AHostThatIsTenTimesSlowerIsLeftOutAndSaysWhy) {
  PredictionInput input = Input();
  const std::vector<HostUse> uses = ChooseExpertHosts({Other(10), Other(1)}, kEntries, &input);
  EXPECT_FALSE(uses[0].used);
  EXPECT_THAT(uses[0].why, HasSubstr("with it and"));
  EXPECT_TRUE(uses[1].used);
  EXPECT_EQ(input.expert_hosts.size(), 1u);
}

TEST_F(HostPlanTest, NoHostMakesAPredictionWorse) {
  for (const double times : {0.5, 1.0, 2.0, 10.0, 1000.0}) {
    for (const double exchange : {0.0, 100e-6, 5e-3}) {
      const std::vector<CandidateHost> with = {Other(1), Other(times, exchange)}, without = {Other(1)};
      EXPECT_LE(DecodeWith(with), 1.0001 * DecodeWith(without)) << times << " " << exchange;
      for (const int64_t tokens : {16, 512}) {
        EXPECT_LE(PrefillWith(with, tokens), 1.0001 * PrefillWith(without, tokens)) << times << " " << exchange;
        EXPECT_LE(PrefillWith(without, tokens), 1.0001 * PrefillWith({}, tokens));
      }
    }
  }
}

TEST_F(HostPlanTest, AHostBehindASlowNetworkIsLeftOut) {
  PredictionInput input = Input();
  EXPECT_FALSE(ChooseExpertHosts({Other(1, /*exchange_seconds=*/50e-3)}, kEntries, &input)[0].used);
}

TEST_F(HostPlanTest, AHostWithoutMemoryForAnExpertOfEveryLayerIsLeftOut) {
  PredictionInput input = Input();
  CandidateHost small = Other(1);
  small.memory_bytes = ReserveOf(0) + arena_.layer(0).bytes;
  const HostUse use = ChooseExpertHosts({small}, kEntries, &input)[0];
  EXPECT_FALSE(use.used);
  EXPECT_THAT(use.why, HasSubstr("no expert of every layer"));
}

TEST_F(HostPlanTest, AHostGetsOnlyWhatItHolds) {
  PredictionInput input = Input();
  CandidateHost half = Other(0.01);
  half.memory_bytes = ReserveOf(0) + arena_.bytes() / 2;
  const HostUse use = ChooseExpertHosts({half}, kEntries, &input)[0];
  EXPECT_TRUE(use.used);
  EXPECT_EQ(use.records, arena_.num_records() / 2);
  const DecodePrediction decode = PredictDecode(input);
  EXPECT_LT(decode.expert_host_bytes[0], 0.75 * decode.host_expert_bytes) << "though it is a hundred times as fast";
  EXPECT_GT(decode.expert_host_bytes[0], 0.25 * decode.host_expert_bytes);
}

}  // namespace
}  // namespace ferry
