#include "coordinator/planning/prefill_prediction.h"

#include "tests/coordinator/planning/prediction_fixture.h"

namespace ferry {
namespace {

using PrefillPredictionTest = PredictionTest;

TEST_F(PrefillPredictionTest, CountsEveryActivatedExpertInOnePlace) {
  for (const int64_t tokens : {1, 64, 1000, 5000}) {
    const PrefillPrediction prediction = PredictPrefill(SlowLink(20), tokens);
    EXPECT_DOUBLE_EQ(prediction.activated, prediction.resident + prediction.shipped + prediction.on_host) << tokens;
    EXPECT_GT(prediction.seconds, 0);
  }
  double expected = 0;
  for (const std::vector<double>& layer : routing_) expected += ExpectedActivated(layer, 1000);
  EXPECT_NEAR(PredictPrefill(SlowLink(0), 1000).activated, expected, 0.1 * expected) << "one draw of them";
}

TEST_F(PrefillPredictionTest, WithoutSlotsTheHostComputesAll) {
  PredictionInput input = SlowLink(0);
  input.rates.host_beside_links = {.read_bytes_per_second = record_bytes_, .flops_per_second = 1e20};  // a second an expert
  const PrefillPrediction prediction = PredictPrefill(input, 500);
  EXPECT_EQ(prediction.shipped, 0);
  EXPECT_EQ(prediction.on_host, prediction.activated);
  EXPECT_NEAR(prediction.seconds, prediction.activated, 0.05);
}

TEST_F(PrefillPredictionTest, TakesTheLinksRateBesideTheHost) {
  PredictionInput input = SlowLink(128);
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};  // the host had better not
  const PrefillPrediction prediction = PredictPrefill(input, 1000);
  EXPECT_EQ(prediction.on_host, 0);
  EXPECT_NEAR(prediction.seconds, prediction.bytes_shipped / record_bytes_, 0.01);
}

TEST_F(PrefillPredictionTest, CopiesAheadUntilAPlanSaysThatTheHostIsFaster) {
  const PrefillPrediction few = PredictPrefill(SlowLink(10), 1000);
  EXPECT_EQ(few.on_host, few.activated);
  EXPECT_GE(few.bytes_shipped, 8 * record_bytes_) << "for the first layer, in vain: two of ten slots are in use";
  EXPECT_LT(few.bytes_shipped, 12 * record_bytes_) << "of the others only what looked heavier than all that went to the host";
  EXPECT_EQ(PredictPrefill(SlowLink(128), 5).bytes_shipped, 0) << "a step of so few rows routes first, and is not planned";
}

TEST_F(PrefillPredictionTest, TakesSlotsForEveryExpertToBeFilledAtLoad) {
  PredictionInput input = SlowLink(config_.num_layers * arena_.num_experts());
  const PrefillPrediction filled = PredictPrefill(input, 1000);
  EXPECT_EQ(filled.resident, filled.activated);
  EXPECT_EQ(filled.bytes_shipped, 0);
  input.cold = true;
  EXPECT_EQ(PredictPrefill(input, 1000).resident, 0);
}

TEST_F(PrefillPredictionTest, FindsWhatAnEarlierPassLeft) {
  Place(1, 500);
  PredictionInput input = SlowLink(128);
  input.cold = true;
  const PrefillPrediction one = PredictPrefill(input, 500), four = PredictPrefill(input, 2000);
  EXPECT_EQ(one.resident, 0);
  EXPECT_GT(four.resident, 2 * one.shipped);
  EXPECT_LT(four.bytes_shipped, 1.5 * one.bytes_shipped);
}

TEST_F(PrefillPredictionTest, PassesFollowEachOtherThroughTheWorkers) {
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

TEST_F(PrefillPredictionTest, AWorkerThatAwaitsRowsCopiesMeanwhile) {
  Place(2, 2000);
  PredictionInput input = SlowLink(128);
  input.cold = true;
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};  // the host had better not
  const PrefillPrediction prediction = PredictPrefill(input, 1000);
  EXPECT_EQ(prediction.shipped, prediction.activated);
  EXPECT_LT(prediction.seconds, 0.7 * prediction.bytes_shipped / record_bytes_) << "two links, and the second starts at once";
}

TEST_F(PrefillPredictionTest, WorkersWithNothingElseToDoHelp) {
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

TEST_F(PrefillPredictionTest, RowsWhoseExpertsAreInSlotsCrossTheNetworkOnce) {
  Place(2, 500);
  PredictionInput input = SlowLink(128);
  const PrefillPrediction prefill = PredictPrefill(input, 100);
  PutLastElsewhere(0.125, &input);
  const PrefillPrediction over = PredictPrefill(input, 100);
  EXPECT_EQ(over.step_rows, prefill.step_rows);
  EXPECT_NEAR(over.seconds - prefill.seconds, 100, 2) << "a hundred hidden states, in whatever steps";
}

// A record takes a second, as a row does, and an expert has some sixty rows.
TEST_F(PrefillPredictionTest, AWorkerOfAnotherHostCopiesExpertsWhoseRowsCostMore) {
  Place(2, 500);
  PredictionInput input = SlowLink(20);
  const PrefillPrediction here = PredictPrefill(input, 500);
  PutLastElsewhere(0.125, &input);
  const PrefillPrediction over = PredictPrefill(input, 500);
  EXPECT_GT(here.on_host, here.shipped) << "the host takes next to nothing";
  EXPECT_LT(over.on_host, 0.7 * here.on_host) << "of the first worker's layers, and experts of few rows";
  EXPECT_EQ(over.activated, over.resident + over.shipped + over.on_host);
}

TEST_F(PrefillPredictionTest, AHostOnItsOwnCoresComputesWhileTheFirstDoes) {
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

TEST_F(PrefillPredictionTest, HoweverManyWorkersTheFirstHostsEngineComputesAllThatIsLeftToIt) {
  Place(2, 500);
  PredictionInput input = SlowLink(0);
  input.rates.host_beside_links.read_bytes_per_second = record_bytes_;
  PutLastElsewhere(0, &input);
  input.networks.back().bytes_per_second = 1e18;
  const PrefillPrediction prediction = PredictPrefill(input, 2000);
  EXPECT_GE(prediction.seconds, 0.99 * prediction.on_host) << "a second an expert";
}

TEST_F(PrefillPredictionTest, NoWorkerHelpsOneOfAnotherHost) {
  Place(2, 2000);
  PredictionInput input = SlowLink(16);
  input.cold = input.help = true;
  input.rates.host_beside_links = {.read_bytes_per_second = 1, .flops_per_second = 1};
  PutLastElsewhere(0, &input);
  EXPECT_EQ(PredictPrefill(input, 1000).helped, 0);
}

}  // namespace
}  // namespace ferry
