#include "coordinator/planning/decode_prediction.h"

#include "tests/coordinator/planning/prediction_fixture.h"

namespace ferry {
namespace {

using DecodePredictionTest = PredictionTest;

TEST_F(DecodePredictionTest, ARowThatTheFirstHostComputesForAnotherCrossesTheNetwork) {
  Place(2, 500);
  PredictionInput input = SlowLink(0);
  const double here = PredictDecode(input).seconds_per_token;
  PutLastElsewhere(0.125, &input);
  // In each of two layers an exchange, the row and four contributions; before them the hidden state, in half an exchange.
  EXPECT_NEAR(PredictDecode(input).seconds_per_token - here, 2 * (0.125 + 1 + 4) + 0.0625 + 1, 0.1);
}

TEST_F(DecodePredictionTest, ARowWhoseExpertsAreInSlotsCrossesTheNetworkOnce) {
  Place(2, 500);
  PredictionInput input = SlowLink(128);
  const double here = PredictDecode(input).seconds_per_token;
  PutLastElsewhere(0.125, &input);
  EXPECT_NEAR(PredictDecode(input).seconds_per_token - here, 0.0625 + 1, 0.02);
}

TEST_F(DecodePredictionTest, DecodeReadsTheCacheOfWhatItIsBehind) {
  const double bytes = PredictDecode(SlowLink(128), 1 << 14).device_bytes - PredictDecode(SlowLink(128)).device_bytes;
  double expected = 0;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const AttentionConfig& attention = config_.layers[layer].attention;
    const int64_t tokens = attention.window > 0 ? attention.window : 1 << 14;
    expected += static_cast<double>(tokens * attention.kv_size()) * 2 * 2;  // keys and values of two bytes
  }
  EXPECT_EQ(bytes, expected);
}

TEST_F(DecodePredictionTest, DecodeReadsFromTheHostWhatSlotsDoNotHold) {
  const DecodePrediction none = PredictDecode(SlowLink(0)), some = PredictDecode(SlowLink(40)),
                         all = PredictDecode(SlowLink(128));
  EXPECT_EQ(none.resident_share, 0);
  EXPECT_NEAR(none.host_bytes, 16 * record_bytes_, 1);
  EXPECT_GT(some.resident_share, 10.0 / 32) << "the ten used most of each layer are more than their share";
  EXPECT_LT(some.host_bytes, none.host_bytes);
  EXPECT_NEAR(all.resident_share, 1, 0.02);
  EXPECT_GT(none.seconds_per_token, all.seconds_per_token);
}

TEST_F(DecodePredictionTest, DecodeBehindAColdPromptFillsTheSlots) {
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
