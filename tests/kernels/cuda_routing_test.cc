// The CUDA backend's router and grouping by expert against the reference.

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/kernels/cuda_rig.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

struct RouteCase {
  int64_t rows, n_embd, num_experts, top_k;
  bool bias;
};
class CudaRouteTest : public CudaCaseTest<RouteCase> {};
// Inputs and weights are small multiples of powers of two: every sum is exact, so ids must agree, equal logits
// included.
TEST_P(CudaRouteTest, ChoosesTheExpertsOfTheReference) {
  const auto [rows, n_embd, num_experts, top_k, has_bias] = GetParam();
  RandomBits random(31);
  std::vector<float> in(rows * n_embd), weight(num_experts * n_embd), bias(num_experts);
  for (float& value : in) value = static_cast<float>(random.Below(9) - 4) / 4;
  for (float& value : weight) value = static_cast<float>(random.Below(9) - 4) / 32;
  for (float& value : bias) value = static_cast<float>(random.Below(5) - 2) / 2;
  const DeviceRowsBuffer device_in(ops_, act(), in, rows, n_embd, /*gap=*/4);
  const GuardedBytes device_weight(ops_, BytesOf(weight)), device_bias(ops_, BytesOf(bias));
  const GuardedBytes experts(ops_, rows * top_k * 4), weights(ops_, rows * top_k * 4);
  std::vector<int32_t> want_experts(rows * top_k);
  std::vector<float> want_weights(rows * top_k);
  ASSERT_OK(reference_.Route(HostTensor(in, rows, n_embd), {.weight = weight.data(), .bias = has_bias ? bias.data() : nullptr},
                             PlainRouter(num_experts, top_k), want_experts.data(), want_weights.data()));
  ASSERT_OK(ops_->Route(device_in.tensor(),
                        {.weight = device_weight.as<float>(), .bias = has_bias ? device_bias.as<float>() : nullptr},
                        PlainRouter(num_experts, top_k), experts.as<int32_t>(), weights.as<float>()));
  EXPECT_EQ(experts.ReadAs<int32_t>(), want_experts);
  EXPECT_TRUE(Close(weights.ReadAs<float>(), want_weights, 1e-6, 1e-5));
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaRouteTest,
                         testing::Values(RouteCase{1, 2880, 128, 4, true}, RouteCase{9, 2880, 32, 4, true},
                                         RouteCase{65, 2880, 128, 4, false}, RouteCase{5000, 256, 32, 4, true},
                                         RouteCase{3, 36, 1, 1, true}, RouteCase{70, 37, 5, 2, true},
                                         RouteCase{2, 37, 5, 2, true}, RouteCase{130, 160, 60, 6, true},
                                         RouteCase{7, 512, 1024, 8, false}, RouteCase{2, 64, 33, 33, true}));

class CudaRoutingTest : public CudaTest {};

TEST_F(CudaRoutingTest, ARowIsRoutedTheSameAloneAndAmongOthersAndAsTheReferenceDoes) {
  constexpr int64_t kRows = 300, kEmbd = 2880, kTop = 4;
  for (const int64_t num_experts : {32, 128}) {
    std::vector<float> in = Rounded(RandomFloats(kRows * kEmbd, 5), act()), weight = RandomFloats(num_experts * kEmbd, 6, 0.02f);
    const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kEmbd);
    const GuardedBytes device_weight(ops_, BytesOf(weight));
    const GuardedBytes experts(ops_, kRows * kTop * 4), weights(ops_, kRows * kTop * 4), one(ops_, kTop * 4),
        one_weight(ops_, kTop * 4);
    ASSERT_OK(ops_->Route(device_in.tensor(), {.weight = device_weight.as<float>(), .bias = nullptr},
                          PlainRouter(num_experts, kTop), experts.as<int32_t>(), weights.as<float>()));
    const std::vector<float> all = weights.ReadAs<float>();
    for (const int64_t row : {0, 77, 299}) {
      ASSERT_OK(ops_->Route(device_in.tensor().Rows(row, 1), {.weight = device_weight.as<float>(), .bias = nullptr},
                            PlainRouter(num_experts, kTop), one.as<int32_t>(), one_weight.as<float>()));
      EXPECT_EQ(one_weight.ReadAs<float>(), std::vector<float>(all.begin() + row * kTop, all.begin() + (row + 1) * kTop));
    }
    std::vector<int32_t> want_experts(kRows * kTop);
    std::vector<float> want(kRows * kTop);
    ASSERT_OK(reference_.Route(HostTensor(in, kRows, kEmbd), {.weight = weight.data(), .bias = nullptr},
                               PlainRouter(num_experts, kTop), want_experts.data(), want.data()));
    EXPECT_EQ(experts.ReadAs<int32_t>(), want_experts);
    EXPECT_TRUE(Close(all, want, 1e-5));  // logits of order 1, off by less than 1e-5: F32, not BF16
  }
}

TEST_F(CudaRoutingTest, NaNLogitsStillRouteToExperts) {
  const std::vector<float> in(32, std::numeric_limits<float>::quiet_NaN());
  const DeviceRowsBuffer device_in(ops_, act(), in, 1, 32);
  const GuardedBytes weight(ops_, BytesOf(std::vector<float>(40 * 32, 1.0f))), experts(ops_, 3 * 4), weights(ops_, 3 * 4);
  ASSERT_OK(ops_->Route(device_in.tensor(), {.weight = weight.as<float>(), .bias = nullptr}, PlainRouter(40, 3),
                        experts.as<int32_t>(), weights.as<float>()));
  EXPECT_EQ(experts.ReadAs<int32_t>(), (std::vector<int32_t>{0, 1, 2}));
}

struct GroupCase {
  int64_t rows, top_k, num_experts;
  int skew;  // 0: uniform; 1: most go to one expert; 2: all do
};
class CudaGroupTest : public CudaCaseTest<GroupCase> {};
TEST_P(CudaGroupTest, GroupsInOrder) {
  const auto [rows, top_k, num_experts, skew] = GetParam();
  RandomBits random(17);
  std::vector<int32_t> experts(rows * top_k);
  for (int32_t& expert : experts) {
    expert = static_cast<int32_t>(skew == 2 || (skew == 1 && random.Below(10) > 0) ? num_experts - 1 : random.Below(num_experts));
  }
  const GuardedBytes device(ops_, BytesOf(experts));
  const GuardedBytes offsets(ops_, (num_experts + 1) * 4), entry_rows(ops_, rows * top_k * 4), entry_outs(ops_, rows * top_k * 4);
  std::vector<int32_t> want_offsets(num_experts + 1), want_rows(rows * top_k), want_outs(rows * top_k);
  ASSERT_OK(reference_.GroupByExpert(experts.data(), rows, top_k, num_experts, want_offsets.data(), want_rows.data(),
                                     want_outs.data()));
  ASSERT_OK(ops_->GroupByExpert(device.as<int32_t>(), rows, top_k, num_experts, offsets.as<int32_t>(), entry_rows.as<int32_t>(),
                                entry_outs.as<int32_t>()));
  EXPECT_EQ(offsets.ReadAs<int32_t>(), want_offsets);
  EXPECT_EQ(entry_rows.ReadAs<int32_t>(), want_rows);
  EXPECT_EQ(entry_outs.ReadAs<int32_t>(), want_outs);
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaGroupTest,
                         testing::Values(GroupCase{1, 1, 1, 0}, GroupCase{1, 4, 128, 0}, GroupCase{5, 4, 33, 1},
                                         GroupCase{128, 4, 32, 0}, GroupCase{129, 4, 32, 0}, GroupCase{4096, 4, 128, 1},
                                         GroupCase{20001, 8, 1024, 0}, GroupCase{3000, 4, 128, 2}, GroupCase{3, 2, 1024, 0}));

TEST_F(CudaRoutingTest, GroupLeavesOutIdsThatAreNoExpert) {
  const std::vector<int32_t> experts = {1, -1232513024, 0, 2, 1, 7};
  const GuardedBytes device(ops_, BytesOf(experts)), offsets(ops_, 4 * 4), rows(ops_, 6 * 4), outs(ops_, 6 * 4);
  ASSERT_OK(ops_->GroupByExpert(device.as<int32_t>(), 3, 2, 3, offsets.as<int32_t>(), rows.as<int32_t>(), outs.as<int32_t>()));
  EXPECT_EQ(offsets.ReadAs<int32_t>(), (std::vector<int32_t>{0, 1, 3, 4}));
  EXPECT_EQ(outs.ReadAs<int32_t>(), (std::vector<int32_t>{2, 0, 4, 3, -1, -1}));
}

}  // namespace
}  // namespace ferry
