// What the CUDA backend reads off logits against the reference.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/cuda_rig.h"

namespace ferry {
namespace {

struct LogitsCase {
  int64_t rows, vocab;
  std::vector<int32_t> top_n;  // of the rows, in turn
};
class CudaLogitsTest : public CudaCaseTest<LogitsCase> {};
TEST_P(CudaLogitsTest, ReadsWhatTheReferenceReads) {
  const auto& [rows, vocab, top_n] = GetParam();
  std::vector<float> logits = RandomFloats(rows * vocab, 80, 4);
  for (float& logit : logits) logit = std::round(logit * 16) / 16;  // many are equal: ties go to the lower id
  if (vocab > 100) {
    logits[5] = -std::numeric_limits<float>::infinity();
    std::fill(logits.begin() + vocab / 2, logits.begin() + vocab,
              -std::numeric_limits<float>::infinity());  // whole segments
    logits[7] = -0.0f, logits[8] = 0.0f;
  }
  std::vector<LogitsRequest> requests;
  for (int64_t row = 0; row < rows; ++row) {
    requests.push_back({top_n[row % top_n.size()], static_cast<int32_t>(row % 2 == 0 ? (row * 997) % vocab : -1)});
  }
  const DeviceRowsBuffer device(ops_, DType::kF32, logits, rows, vocab, /*gap=*/1);
  ASSERT_OK_AND_ASSIGN(const auto got, ops_->ReadLogits(device.tensor(), requests));
  ASSERT_OK_AND_ASSIGN(const auto want, reference_.ReadLogits(HostTensor(logits, rows, vocab), requests));
  ASSERT_EQ(got.size(), want.size());
  for (int64_t row = 0; row < rows; ++row) {
    EXPECT_NEAR(got[row].log_sum_exp, want[row].log_sum_exp, 2e-5) << row;
    EXPECT_EQ(got[row].target_logit, want[row].target_logit) << row;
    EXPECT_EQ(got[row].ids, want[row].ids) << row;
    EXPECT_EQ(got[row].logits, want[row].logits) << row;
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaLogitsTest,
                         testing::Values(LogitsCase{1, 1, {1}}, LogitsCase{3, 7, {0, 3, 7}}, LogitsCase{2, 8192, {20, 1}},
                                         LogitsCase{3, 8193, {2048, 40, 0}}, LogitsCase{4, 201088, {64, 0, 1, 1000}},
                                         LogitsCase{2, 201088, {5000, 201088}}, LogitsCase{40, 300, {3}}));

class CudaReadLogitsTest : public CudaTest {};

TEST_F(CudaReadLogitsTest, NaNLogitsComeAfterAllNumbers) {
  std::vector<float> logits(10000, -3.0f);
  for (int64_t i = 0; i < 10000; i += 3) logits[i] = std::numeric_limits<float>::quiet_NaN();
  logits[9998] = 5;
  const DeviceRowsBuffer device(ops_, DType::kF32, logits, 1, 10000);
  ASSERT_OK_AND_ASSIGN(const auto got, ops_->ReadLogits(device.tensor(), std::vector<LogitsRequest>{{3, -1}}));
  EXPECT_EQ(got[0].ids, (std::vector<int32_t>{9998, 1, 2}));
  EXPECT_TRUE(std::isnan(got[0].log_sum_exp));
}

}  // namespace
}  // namespace ferry
