// The CUDA backend's experts and contributions against the reference; cuda_products_test.cc has the products' own tests.

#include <algorithm>
#include <numeric>

#include "tests/kernels/cuda_rig.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

class CudaExpertsTest : public CudaTest {};

TEST_F(CudaExpertsTest, MatMulMatchesReference) {
  constexpr int64_t kRows = 19, kIn = 96, kOut = 83;
  for (const DType dtype : {DType::kQ8_0, DType::kMXFP4, DType::kBF16}) {
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype, kOut, kIn, 9, 0.1f);
    const GuardedBytes device_weight(ops_, weight.memory.span());
    std::vector<float> in = Rounded(RandomFloats(kRows * kIn, 8), act()), bias = RandomFloats(kOut, 10),
                       want = RandomFloats(kRows * kOut, 12);
    const GuardedBytes device_bias(ops_, BytesOf(bias));
    const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kIn), out(ops_, DType::kF32, want, kRows, kOut, /*gap=*/5);
    ASSERT_OK(reference_.MatMul(HostTensor(in, kRows, kIn), weight.matrix, bias.data(), HostTensor(want, kRows, kOut), true));
    ASSERT_OK(ops_->MatMul(device_in.tensor(), {weight.matrix.layout, device_weight.data()}, device_bias.as<float>(),
                           out.tensor(), true));
    EXPECT_TRUE(Close(out.Read(), want, 0.02, 0.01)) << NameOf(dtype);
  }
}

TEST_F(CudaExpertsTest, ExpertMlpScatterAndCombineMatchReference) {
  constexpr int64_t kRows = 41, kEmbd = 96, kFf = 160, kExperts = 5, kTop = 2;
  ASSERT_OK_AND_ASSIGN(const ExpertLayout layout,
                       ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, kEmbd, kFf, true));
  std::vector<AlignedBytes> records;
  std::vector<std::unique_ptr<GuardedBytes>> device_records;
  for (int64_t e = 0; e < kExperts; ++e) {
    records.push_back(RandomExpertRecord(layout, 100 + e));
    device_records.push_back(std::make_unique<GuardedBytes>(ops_, records.back().span()));
  }
  std::vector<float> in = Rounded(RandomFloats(kRows * kEmbd, 40), act()), want(kRows * kTop * kEmbd),
                     want_x = RandomFloats(kRows * kEmbd, 41);
  std::vector<int32_t> experts(kRows * kTop);
  for (int64_t i = 0; i < kRows; ++i)
    experts[2 * i] = i % kExperts,
                experts[2 * i + 1] = (i * i + i + 1) % kExperts == i % kExperts ? (i + 1) % kExperts : (i * i + i + 1) % kExperts;
  std::vector<float> weights(kRows * kTop);
  for (int64_t i = 0; i < kRows; ++i) weights[2 * i] = 0.7f, weights[2 * i + 1] = 0.3f;
  std::vector<int32_t> offsets(kExperts + 1), rows(kRows * kTop), outs(kRows * kTop);
  ASSERT_OK(reference_.GroupByExpert(experts.data(), kRows, kTop, kExperts, offsets.data(), rows.data(), outs.data()));

  const DType type = ops_->contribution_dtype();
  const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kEmbd), contributions(ops_, type, kRows * kTop, kEmbd),
      x(ops_, DType::kF32, want_x, kRows, kEmbd);
  const GuardedBytes device_offsets(ops_, BytesOf(offsets)), device_rows(ops_, BytesOf(rows)), device_outs(ops_, BytesOf(outs)),
      device_weights(ops_, BytesOf(weights));
  const ExpertGroups host_groups{kExperts, kRows * kTop, offsets.data(), rows.data(), outs.data()};
  const ExpertGroups groups{kExperts, kRows * kTop, device_offsets.as<int32_t>(), device_rows.as<int32_t>(),
                            device_outs.as<int32_t>()};
  std::vector<ExpertUse> host_uses, uses;
  for (int32_t e = 0; e < kExperts; ++e) {
    host_uses.push_back({records[e].data(), e, offsets[e + 1] - offsets[e]});
    uses.push_back({device_records[e]->data(), e, offsets[e + 1] - offsets[e]});
  }
  ASSERT_OK(reference_.ExpertMlp(layout, host_uses, host_groups, {}, HostTensor(in, kRows, kEmbd),
                                 HostTensor(want, kRows * kTop, kEmbd)));
  // The last expert is computed by the host: its rows come over the link.
  ASSERT_OK(ops_->ExpertMlp(layout, std::span(uses).first(kExperts - 1), groups, {}, device_in.tensor(), contributions.tensor()));
  const std::vector<int32_t> host_outs(outs.begin() + offsets[kExperts - 1], outs.end());
  std::vector<float> host_rows;
  for (const int32_t out : host_outs)
    host_rows.insert(host_rows.end(), want.begin() + out * kEmbd, want.begin() + (out + 1) * kEmbd);
  ASSERT_OK(ops_->ScatterContributions(host_rows, host_outs, contributions.tensor()));
  std::fill(host_rows.begin(), host_rows.end(), 0.0f);  // free on return
  EXPECT_LT((RelativeRmsError<float, float>(contributions.Read(), want)), 0.01);
  ASSERT_OK(ops_->Combine(contributions.tensor(), device_weights.as<float>(), kTop, x.tensor()));
  ASSERT_OK(reference_.Combine(HostTensor(want, kRows * kTop, kEmbd), weights.data(), kTop, HostTensor(want_x, kRows, kEmbd)));
  EXPECT_LT((RelativeRmsError<float, float>(x.Read(), want_x)), 0.005);
}

TEST_F(CudaExpertsTest, ScatterRoundsEveryRowThatTheHostHandsOver) {
  const DType type = ops_->contribution_dtype();
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 32}, {3, 37}, {1500, 2880}}) {  // the last: five staging buffers
    const std::vector<float> values = RandomFloats(rows * cols, 50, 100);
    std::vector<int32_t> outs(rows);
    for (int64_t i = 0; i < rows; ++i) outs[i] = static_cast<int32_t>(2 * (rows - 1 - i) + 1);
    const DeviceRowsBuffer contributions(ops_, type, 2 * rows, cols, /*gap=*/3);
    ASSERT_OK(ops_->ScatterContributions(values, outs, contributions.tensor()));
    const std::vector<float> got = contributions.Read();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t col = 0; col < cols; ++col) {
        ASSERT_EQ(got[outs[i] * cols + col], Rounded(values[i * cols + col], type)) << i << ", " << col;
        ASSERT_TRUE(std::isnan(got[(outs[i] - 1) * cols + col]));  // rows that were not named keep their poison
      }
    }
  }
}

TEST_F(CudaExpertsTest, ScatterReadsPinnedRowsWhereTheyLie) {
  constexpr int64_t kRows = 5, kCols = 2880;
  const DType type = ops_->contribution_dtype();
  AlignedBytes memory(2 * kRows * kCols * sizeof(float));
  const std::span<float> all(reinterpret_cast<float*>(memory.span().data()), 2 * kRows * kCols);
  const std::vector<float> values = RandomFloats(static_cast<int64_t>(all.size()), 51);
  std::copy(values.begin(), values.end(), all.begin());
  const std::span<const std::byte> first_half = memory.span().first(kRows * kCols * sizeof(float));
  ASSERT_OK(ops_->PinHost(first_half, /*read_only=*/false));
  const std::vector<int32_t> outs = {4, 0, 3, 1, 2};
  for (const int64_t first :
       {int64_t{0}, kRows * kCols, kRows * kCols / 2}) {  // inside, outside, and across the end of the pinned region
    const std::span<const float> rows = all.subspan(first, kRows * kCols);
    const DeviceRowsBuffer contributions(ops_, type, kRows, kCols);
    ASSERT_OK(ops_->ScatterContributionsAsync(rows, outs, contributions.tensor()));
    const std::vector<float> got = contributions.Read();
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      ASSERT_EQ(got[outs[i / kCols] * kCols + i % kCols], Rounded(rows[i], type)) << first << ": " << i;
    }
  }
  EXPECT_THAT(ops_->ScatterContributionsAsync(all.first(kRows * kCols), std::vector<int32_t>{0, 1, 2, 3, 5},
                                              DeviceRowsBuffer(ops_, type, kRows, kCols).tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ops_->UnpinHost(first_half);
}

TEST_F(CudaExpertsTest, CombineAddsTheRanksInOrder) {
  const DType type = ops_->contribution_dtype();
  for (const auto& [rows, cols, top_k] : {std::tuple<int64_t, int64_t, int64_t>{1, 2880, 4}, {33, 70, 1}, {5, 513, 8}}) {
    std::vector<float> contributions = Rounded(RandomFloats(rows * top_k * cols, 60), type),
                       weights = RandomFloats(rows * top_k, 61), x = RandomFloats(rows * cols, 62);
    const DeviceRowsBuffer device(ops_, type, contributions, rows * top_k, cols, 2),
        device_x(ops_, DType::kF32, x, rows, cols, 1);
    const GuardedBytes device_weights(ops_, BytesOf(weights));
    ASSERT_OK(ops_->Combine(device.tensor(), device_weights.as<float>(), top_k, device_x.tensor()));
    std::vector<float> want = x;
    for (int64_t i = 0; i < rows * cols; ++i) {
      float sum = 0;
      for (int64_t r = 0; r < top_k; ++r) {
        sum = std::fmaf(weights[i / cols * top_k + r], contributions[(i / cols * top_k + r) * cols + i % cols], sum);
      }
      want[i] += sum;
    }
    EXPECT_EQ(device_x.Read(), want);
  }
}

// To pinned memory by the device itself, to other memory in parts: 4 MiB hold 364 rows of 2,880. Where memory is pinned in part,
// a result may reach beyond.
TEST_F(CudaExpertsTest, DownloadedRowsAreFloatsWhereverTheyGo) {
  constexpr int64_t kPinnedBytes = 2000 * 4096;
  AlignedBytes memory(1000 * 2880 * 4 + 4096);
  ASSERT_OK(ops_->PinHost(memory.span().first(kPinnedBytes), /*read_only=*/false));
  for (const DType dtype : {DType::kF32, act()}) {
    for (const auto& [num_rows, cols, gap] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 0}, {5, 7, 2}, {900, 64, 0}, {700, 2880, 8}, {1000, 2880, 8}}) {
      const std::vector<float> values = Rounded(RandomFloats(50 * cols, 71), dtype);
      const DeviceRowsBuffer in(ops_, dtype, values, 50, cols, gap);
      std::vector<int32_t> rows(num_rows);
      std::vector<float> want, out(num_rows * cols);
      for (int64_t i = 0; i < num_rows; ++i) {
        rows[i] = static_cast<int32_t>((i * 7 + 3) % 50);
        want.insert(want.end(), values.begin() + rows[i] * cols, values.begin() + (rows[i] + 1) * cols);
      }
      const std::span<float> in_place(reinterpret_cast<float*>(memory.data()), out.size());
      std::fill(memory.span().begin(), memory.span().end(), std::byte{0xFF});
      ASSERT_OK(ops_->DownloadRows(in.tensor(), rows, in_place));
      ASSERT_OK(ops_->DownloadRows(in.tensor(), rows, out));
      EXPECT_TRUE(std::equal(want.begin(), want.end(), in_place.begin()));
      EXPECT_EQ(memory.span()[out.size() * 4], std::byte{0xFF}) << "the byte behind the rows";
      EXPECT_EQ(out, want);
    }
  }
  ops_->UnpinHost(memory.span().first(kPinnedBytes));
}

TEST_F(CudaExpertsTest, DownloadRowsRefusesWhatDoesNotFit) {
  const DeviceRowsBuffer in(ops_, act(), std::vector<float>(11 * 64), 11, 64);
  std::vector<float> out(2 * 64);
  const auto refused = [](const char* why) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)); };
  EXPECT_THAT(ops_->DownloadRows(in.tensor(), std::vector<int32_t>{0, 11}, out), refused("host_rows[1] is 11, want 0 to 10"));
  EXPECT_THAT(ops_->DownloadRows(in.tensor(), std::vector<int32_t>{0}, out), refused("host_out holds 128 numbers, want 64"));
}

TEST_F(CudaExpertsTest, GatherCopiesRowsOfEveryTypeAndWidth) {
  for (const DType dtype : {DType::kF32, act()}) {
    for (const auto& [cols, gap] : {std::pair<int64_t, int64_t>{1, 0}, {7, 2}, {64, 0}, {2880, 8}}) {
      const std::vector<float> values = Rounded(RandomFloats(11 * cols, 70), dtype);
      const std::vector<int32_t> rows = {10, 0, 3, 3, 7};
      const DeviceRowsBuffer in(ops_, dtype, values, 11, cols, gap), out(ops_, dtype, 5, cols, gap);
      ASSERT_OK(ops_->GatherRows(in.tensor(), rows, out.tensor()));
      std::vector<float> want;
      for (const int32_t row : rows) want.insert(want.end(), values.begin() + row * cols, values.begin() + (row + 1) * cols);
      EXPECT_EQ(out.Read(), want);
      EXPECT_THAT(ops_->GatherRows(in.tensor(), std::vector<int32_t>{0, 1, 2, 3, 11}, out.tensor()),
                  StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("host_rows[4] is 11")));
    }
  }
}

}  // namespace
}  // namespace ferry
