// The CUDA backend's operations on rows against the reference: embedding, norm, rotation and the KV cache.

#include <algorithm>
#include <numeric>
#include <tuple>

#include "common/model/formats/formats.h"
#include "kernels/kv_cache_format.h"
#include "tests/kernels/cuda_rig.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

Batch TokensBatch(std::vector<int32_t> ids) {
  Batch batch;
  const int64_t rows = static_cast<int64_t>(ids.size());
  batch.token_ids = std::move(ids);
  if (rows > 0) batch.sequences = {{.first_row = 0, .num_rows = rows, .first_position = 0, .blocks = {}, .ring_blocks = {}}};
  return batch;
}

class CudaEmbedTest : public CudaCaseTest<std::tuple<DType, int64_t>> {};
TEST_P(CudaEmbedTest, DecodesTheRowsOfTheTable) {
  const auto [dtype, cols] = GetParam();
  constexpr int64_t kVocab = 53;
  const OwnedTiledMatrix table = RandomTiledMatrix(dtype, kVocab, cols, 11);
  const GuardedBytes device_table(ops_, table.memory.span());
  const std::vector<int32_t> ids = {52, 0, 17, 17, 1, 31, 16, 15, 50};
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch(TokensBatch(ids)));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(TokensBatch(ids)));
  for (const int64_t first : {0, 2}) {
    const int64_t rows = static_cast<int64_t>(ids.size()) - first;
    const DeviceRowsBuffer x(ops_, DType::kF32, rows, cols, /*gap=*/3);
    ASSERT_OK(ops_->Embed(*batch, first, {table.matrix.layout, device_table.data()}, x.tensor()));
    std::vector<float> want(rows * cols);
    ASSERT_OK(reference_.Embed(*host_batch, first, table.matrix, HostTensor(want, rows, cols)));
    EXPECT_EQ(x.Read(), want);
  }
}
INSTANTIATE_TEST_SUITE_P(Types, CudaEmbedTest,
                         testing::Combine(testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                                                          DType::kMXFP4),
                                          testing::Values(32, 288, 2880)));

class CudaRowsTest : public CudaTest {};

TEST_F(CudaRowsTest, EmbedDecodesEveryTypeOfWeights) {
  constexpr int64_t kVocab = 37;
  const std::vector<int32_t> ids = {36, 0, 17, 1, 31, 16, 15};
  const auto rows = static_cast<int64_t>(ids.size());
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch(TokensBatch(ids)));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(TokensBatch(ids)));
  ForEachFormat([&]<DType kType>() {
    for (const int64_t cols : {256, 768, 9216}) {
      const OwnedTiledMatrix table = RandomTiledMatrix(kType, kVocab, cols, 11);
      const GuardedBytes device_table(ops_, table.memory.span());
      const DeviceRowsBuffer x(ops_, DType::kF32, rows, cols, /*gap=*/3);
      EXPECT_OK(ops_->Embed(*batch, 0, {table.matrix.layout, device_table.data()}, x.tensor()));
      std::vector<float> want(rows * cols);
      EXPECT_OK(reference_.Embed(*host_batch, 0, table.matrix, HostTensor(want, rows, cols)));
      EXPECT_TRUE(Close(x.Read(), want, 1e-5, 1e-6)) << NameOf(kType) << ", " << cols << " columns";
    }
  });
}

TEST_F(CudaRowsTest, EmbedRefusesIdsBeyondTheTable) {
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 16, 32, 1);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch(TokensBatch({3, 16})));
  const DeviceRowsBuffer x(ops_, DType::kF32, 2, 32);
  EXPECT_THAT(ops_->Embed(*batch, 0, table.matrix, x.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token_ids[1] is 16")));
}

struct NormCase {
  int64_t rows, cols, gap;
};
class CudaRmsNormTest : public CudaCaseTest<NormCase> {};
TEST_P(CudaRmsNormTest, MatchesReference) {
  const auto [rows, cols, gap] = GetParam();
  std::vector<float> x = RandomFloats(rows * cols, 3, 2.5f), weight = RandomFloats(cols, 4), want(rows * cols);
  const DeviceRowsBuffer device_x(ops_, DType::kF32, x, rows, cols, gap);
  const GuardedBytes device_weight(ops_, BytesOf(weight));
  ASSERT_OK(reference_.RmsNorm(HostTensor(x, rows, cols), weight.data(), 1e-5, HostTensor(want, rows, cols)));
  for (const DType dtype : {DType::kF32, act()}) {
    const DeviceRowsBuffer out(ops_, dtype, rows, cols, gap);
    ASSERT_OK(ops_->RmsNorm(device_x.tensor(), device_weight.as<float>(), 1e-5, out.tensor()));
    EXPECT_TRUE(Close(out.Read(), want, 1e-6, RoundingOf(dtype) + 2e-6));
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaRmsNormTest,
                         testing::Values(NormCase{1, 1, 0}, NormCase{3, 33, 1}, NormCase{5, 2880, 0}, NormCase{70, 4099, 5},
                                         NormCase{2, 20000, 4}));

struct RopeCase {
  int64_t heads, kv_heads, head_dim, num_dims;
  DType cache;
  DType qkv;  // kF32, or kBF16 for the activation type
  bool yarn, ring;
};
class CudaRopeTest : public CudaCaseTest<RopeCase> {};
TEST_P(CudaRopeTest, RotatesQueriesAndStoresKeysAndValues) {
  const RopeCase c = GetParam();
  const DType qkv_type = c.qkv == DType::kF32 ? DType::kF32 : act();
  RopeConfig rope{.freq_base = 150000, .num_dims = c.num_dims};
  if (c.yarn) rope.yarn_factor = 32, rope.yarn_original_context = 4096, rope.attention_factor = 1.3465735902799727;
  // Two sequences, one deep into a long context.
  Batch batch;
  batch.sequences = {{.first_row = 0, .num_rows = 37, .first_position = 5, .blocks = {3, 0}, .ring_blocks = {4, 6}},
                     {.first_row = 37, .num_rows = 3, .first_position = 131000, .blocks = {}, .ring_blocks = {1, 2}}};
  batch.sequences[1].blocks.assign(131003 / kKvBlockTokens + 1, 5);
  const int64_t rows = 40, width = (c.heads + 2 * c.kv_heads) * c.head_dim, q_width = c.heads * c.head_dim;
  KvLayer cache{.key_type = c.cache,
                .value_type = c.cache,
                .num_blocks = 7,
                .num_kv_heads = c.kv_heads,
                .head_dim = c.head_dim,
                .ring = c.ring};
  const int64_t plane = KvPlaneBytes(c.cache, cache.num_blocks, c.kv_heads, c.head_dim);
  std::vector<float> qkv = Rounded(RandomFloats(rows * width, 21, 3), qkv_type);
  std::fill_n(qkv.begin() + 3 * width + q_width, c.head_dim, 0.0f);  // a key of zeros: Q8_0 gives it the scale 0

  const DeviceRowsBuffer device_qkv(ops_, qkv_type, qkv, rows, width, /*gap=*/4), q_out(ops_, act(), rows, q_width, /*gap=*/4);
  const GuardedBytes keys(ops_, plane), values(ops_, plane);
  KvLayer device_cache = cache;
  device_cache.keys = keys.data(), device_cache.values = values.data();
  AlignedBytes want_keys(plane), want_values(plane);
  std::fill(want_keys.span().begin(), want_keys.span().end(), std::byte{0xFF});
  std::fill(want_values.span().begin(), want_values.span().end(), std::byte{0xFF});
  cache.keys = want_keys.data(), cache.values = want_values.data();
  std::vector<float> want_q(rows * q_width);

  ASSERT_OK_AND_ASSIGN(const auto device_batch, ops_->PrepareBatch(batch));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(batch));
  // In two calls, as chunks of a layer do it.
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 11}, {11, 29}}) {
    ASSERT_OK(ops_->RopeAndStore(*device_batch, first, rope, {}, device_qkv.tensor().Rows(first, count), device_cache,
                                 q_out.tensor().Rows(first, count)));
    ASSERT_OK(reference_.RopeAndStore(*host_batch, first, rope, {}, HostTensor(qkv, rows, width).Rows(first, count), cache,
                                      HostTensor(want_q, rows, q_width).Rows(first, count)));
  }
  // The sines of large angles are exact to a few 2^-24.
  EXPECT_TRUE(Close(q_out.Read(), want_q, 1e-5, RoundingOf(act()) + 1e-6));
  const auto same_plane = [&](const GuardedBytes& got, const AlignedBytes& want) {
    const std::vector<std::byte> bytes = got.Read();
    std::vector<float> got_row(c.head_dim), want_row(c.head_dim);
    for (int64_t row = 0; row < cache.num_blocks * c.kv_heads * kKvBlockTokens; ++row) {
      LoadKvRow(cache, bytes.data(), c.cache, row, got_row.data());
      LoadKvRow(cache, want.data(), c.cache, row, want_row.data());
      // Q8_0: a number may fall on the other side of a code's edge, so a step of d, where d <= 18 / 127.
      const double step = c.cache == DType::kQ8_0 ? 0.15 : 1e-5;
      ASSERT_TRUE(Close(got_row, want_row, step, 0x1p-10)) << "cache row " << row;
    }
  };
  same_plane(keys, want_keys);
  same_plane(values, want_values);
  // Values are not rotated, so their bytes are exactly those of the definition.
  EXPECT_EQ(values.Read(), std::vector<std::byte>(want_values.span().begin(), want_values.span().end()));
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaRopeTest,
                         testing::Values(RopeCase{64, 8, 64, 64, DType::kF16, DType::kF32, true, false},
                                         RopeCase{64, 8, 64, 64, DType::kQ8_0, DType::kBF16, true, true},
                                         RopeCase{8, 2, 64, 64, DType::kF16, DType::kBF16, true, true},
                                         RopeCase{3, 1, 32, 32, DType::kQ8_0, DType::kF32, false, false},
                                         RopeCase{6, 3, 128, 64, DType::kF16, DType::kF32, false,
                                                  true},  // half of the dimensions stay
                                         RopeCase{2, 2, 128, 128, DType::kQ8_0, DType::kF32, true, false},
                                         RopeCase{4, 4, 64, 0, DType::kF16, DType::kF32, false, false}));  // none is rotated

TEST_F(CudaRowsTest, RopeRefusesHeadsItHasNoKernelFor) {
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch({.token_ids = {}, .sequences = {{.num_rows = 1, .blocks = {0}}}}));
  const GuardedBytes plane(ops_, KvPlaneBytes(DType::kF16, 1, 1, 96));
  const KvLayer cache{.keys = plane.data(), .values = plane.data(), .num_blocks = 1, .num_kv_heads = 1, .head_dim = 96};
  const DeviceRowsBuffer qkv(ops_, DType::kF32, 1, 3 * 96), q(ops_, act(), 1, 96);
  EXPECT_THAT(ops_->RopeAndStore(*batch, 0, {.num_dims = 96}, {}, qkv.tensor(), cache, q.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim is 96")));
  EXPECT_THAT(ops_->Attention(*batch, 0, q.tensor(), cache, PlainAttention(cache), q.tensor()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim is 96")));
}

TEST_F(CudaRowsTest, NothingIsTouchedWithoutRows) {
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_->PrepareBatch({}));
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 16, 32, 1);
  const Tensor x(nullptr, DType::kF32, 0, 32), in(nullptr, act(), 0, 32),
      contributions(nullptr, ops_->contribution_dtype(), 0, 32);
  const float weight = 1;
  EXPECT_OK(ops_->Embed(*batch, 0, table.matrix, x));
  EXPECT_OK(ops_->RmsNorm(x, &weight, 1e-5, in));
  EXPECT_OK(ops_->MatMul(in, table.matrix, nullptr, Tensor(nullptr, act(), 0, 16), false));
  EXPECT_OK(ops_->Route(in, {.weight = &weight, .bias = nullptr}, PlainRouter(4, 2), nullptr, nullptr));
  EXPECT_OK(ops_->GroupByExpert(nullptr, 0, 2, 4, nullptr, nullptr, nullptr));
  EXPECT_OK(ops_->ScatterContributions({}, {}, contributions));
  EXPECT_OK(ops_->Combine(contributions, nullptr, 2, x));
  EXPECT_OK(ops_->GatherRows(x, {}, x));
  EXPECT_OK(ops_->DownloadRows(x, {}, {}));
  EXPECT_OK(ops_->ReadLogits(x, {}));
  EXPECT_OK(ops_->Upload(nullptr, {}));
  EXPECT_OK(ops_->Download({}, nullptr));
}

}  // namespace
}  // namespace ferry
