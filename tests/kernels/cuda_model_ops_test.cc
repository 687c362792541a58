// CUDA operations that gpt-oss does not use: head norms, rotation of neighbours, routers with sigmoid and groups, the gated
// linear unit of an MLP. Held against the reference.

#include "kernels/kv_cache_format.h"
#include "tests/kernels/cuda_rig.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

struct NormedRopeCase {
  int64_t heads, kv_heads, head_dim, num_dims;
  bool norms, neighbours;
};
class CudaNormedRopeTest : public CudaCaseTest<NormedRopeCase> {};

TEST_P(CudaNormedRopeTest, NormalisesHeadsAndTurnsThem) {
  const NormedRopeCase c = GetParam();
  constexpr int64_t kRows = 21;
  const RopeConfig rope = {.freq_base = 1e6, .num_dims = c.num_dims, .neighbours = c.neighbours};
  Batch batch;
  batch.sequences = {{.first_row = 0, .num_rows = kRows, .first_position = 5, .blocks = {1, 0}, .ring_blocks = {}}};
  const int64_t q_width = c.heads * c.head_dim, width = q_width + 2 * c.kv_heads * c.head_dim;
  std::vector<float> qkv = RandomFloats(kRows * width, 51, 3);
  const std::vector<float> query_norm = RandomFloats(c.head_dim, 53), key_norm = RandomFloats(c.head_dim, 55);
  const int64_t plane = KvPlaneBytes(DType::kF16, 2, c.kv_heads, c.head_dim);
  KvLayer host = {.num_blocks = 2, .num_kv_heads = c.kv_heads, .head_dim = c.head_dim}, device = host;
  AlignedBytes host_keys(plane), host_values(plane);
  host.keys = host_keys.data(), host.values = host_values.data();
  const GuardedBytes keys(ops_, plane), values(ops_, plane);
  device.keys = keys.data(), device.values = values.data();
  const GuardedBytes device_query_norm(ops_, BytesOf(query_norm)), device_key_norm(ops_, BytesOf(key_norm));
  const DeviceRowsBuffer device_qkv(ops_, DType::kF32, qkv, kRows, width), q_out(ops_, act(), kRows, q_width);
  std::vector<float> want(kRows * q_width);

  ASSERT_OK_AND_ASSIGN(const auto device_batch, ops_->PrepareBatch(batch));
  ASSERT_OK_AND_ASSIGN(const auto host_batch, reference_.PrepareBatch(batch));
  HeadNorms device_norms, host_norms;
  if (c.norms) {
    device_norms = {device_query_norm.as<float>(), device_key_norm.as<float>(), 1e-6};
    host_norms = {query_norm.data(), key_norm.data(), 1e-6};
  }
  ASSERT_OK(ops_->RopeAndStore(*device_batch, 0, rope, device_norms, device_qkv.tensor(), device, q_out.tensor()));
  ASSERT_OK(reference_.RopeAndStore(*host_batch, 0, rope, host_norms, HostTensor(qkv, kRows, width), host,
                                    HostTensor(want, kRows, q_width)));
  EXPECT_TRUE(Close(q_out.Read(), want, 1e-5, RoundingOf(act()) + 1e-5));
  const std::vector<std::byte> got_keys = keys.Read();
  std::vector<float> got_row(c.head_dim), want_row(c.head_dim);
  for (int64_t position = 5; position < 5 + kRows; ++position) {
    for (int64_t head = 0; head < c.kv_heads; ++head) {
      const int32_t table[] = {1, 0};
      const int64_t row = KvRowAt(host, table, 2, head, position);
      LoadKvRow(host, got_keys.data(), DType::kF16, row, got_row.data());
      LoadKey(host, row, want_row.data());
      EXPECT_TRUE(Close(got_row, want_row, 1e-4, 0x1p-10)) << position;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, CudaNormedRopeTest,
                         testing::Values(NormedRopeCase{32, 4, 128, 128, true, false},
                                         NormedRopeCase{12, 1, 128, 64, true, false}, NormedRopeCase{4, 2, 64, 64, false, true},
                                         NormedRopeCase{3, 3, 64, 32, true, true}));

struct RouterCase {
  int64_t num_experts, top_k, groups, groups_used;
  RouterScore score;
  bool normalise, selection_bias;
};
class CudaRouterTest : public CudaCaseTest<RouterCase> {};

TEST_P(CudaRouterTest, ChoosesAndWeighsAsTheReferenceDoes) {
  const RouterCase c = GetParam();
  constexpr int64_t kRows = 37, kEmbd = 256;
  RandomBits random(61);
  // Exact sums, as in cuda_routing_test.cc; the bias keeps scores of one logit apart.
  std::vector<float> in(kRows * kEmbd), weight(c.num_experts * kEmbd), bias(c.num_experts);
  for (float& value : in) value = static_cast<float>(random.Below(9) - 4) / 8;
  for (float& value : weight) value = static_cast<float>(random.Below(9) - 4) / 32;
  for (int64_t e = 0; e < c.num_experts; ++e)
    bias[e] = 0.1f * static_cast<float>(random.Normal()) + 1e-3f * static_cast<float>(e);
  const RouterConfig config = {.num_experts = c.num_experts,
                               .top_k = c.top_k,
                               .score = c.score,
                               .normalise = c.normalise,
                               .num_groups = c.groups,
                               .groups_used = c.groups_used,
                               .group_best = c.score == RouterScore::kSigmoid ? 2 : 1,
                               .weight_scale = 2.5};
  const DeviceRowsBuffer device_in(ops_, act(), in, kRows, kEmbd);
  const GuardedBytes device_weight(ops_, BytesOf(weight)), device_bias(ops_, BytesOf(bias));
  const GuardedBytes experts(ops_, kRows * c.top_k * 4), weights(ops_, kRows * c.top_k * 4);
  std::vector<int32_t> want_experts(kRows * c.top_k);
  std::vector<float> want_weights(kRows * c.top_k);
  ASSERT_OK(reference_.Route(HostTensor(in, kRows, kEmbd),
                             {.weight = weight.data(), .selection_bias = c.selection_bias ? bias.data() : nullptr}, config,
                             want_experts.data(), want_weights.data()));
  ASSERT_OK(
      ops_->Route(device_in.tensor(),
                  {.weight = device_weight.as<float>(), .selection_bias = c.selection_bias ? device_bias.as<float>() : nullptr},
                  config, experts.as<int32_t>(), weights.as<float>()));
  EXPECT_EQ(experts.ReadAs<int32_t>(), want_experts);
  EXPECT_TRUE(Close(weights.ReadAs<float>(), want_weights, 1e-6, 1e-5));
}
INSTANTIATE_TEST_SUITE_P(Routers, CudaRouterTest,
                         testing::Values(RouterCase{128, 8, 1, 1, RouterScore::kSigmoid, true, true},   // GLM-4.5-Air
                                         RouterCase{256, 8, 8, 4, RouterScore::kSigmoid, true, true},   // DeepSeek-V3
                                         RouterCase{384, 8, 1, 1, RouterScore::kSigmoid, true, true},   // Kimi-K2
                                         RouterCase{64, 6, 1, 1, RouterScore::kSoftmax, false, false},  // DeepSeek-V2-Lite
                                         RouterCase{160, 6, 8, 3, RouterScore::kSoftmax, false, false},
                                         RouterCase{7, 3, 7, 5, RouterScore::kSigmoid, false, true}));

using CudaGluTest = CudaTest;
TEST_F(CudaGluTest, IsTheFormulaOfTheReference) {
  constexpr int64_t kRows = 5, kCols = 333;
  std::vector<float> gate = RandomFloats(kRows * kCols, 71, 5), up = RandomFloats(kRows * kCols, 73, 5), want(kRows * kCols);
  const DeviceRowsBuffer both(ops_, DType::kF32, gate, kRows, kCols, /*gap=*/3), device_up(ops_, DType::kF32, up, kRows, kCols);
  for (const GluParams& glu : {GptOssGlu(), GluParams()}) {
    const DeviceRowsBuffer out(ops_, act(), kRows, kCols, /*gap=*/5);
    ASSERT_OK(ops_->Glu(both.tensor(), device_up.tensor(), glu, out.tensor()));
    ASSERT_OK(reference_.Glu(HostTensor(gate, kRows, kCols), HostTensor(up, kRows, kCols), glu, HostTensor(want, kRows, kCols)));
    EXPECT_TRUE(Close(out.Read(), want, 1e-5, RoundingOf(act()) + 1e-5));
  }
}

using CudaCheckModelTest = CudaTest;
TEST_F(CudaCheckModelTest, TakesLatentAttentionOfWholeTilesAlone) {
  ModelConfig model = {.architecture = "deepseek2"};
  AttentionConfig attention = {.kind = AttentionKind::kLatent, .num_heads = 128, .num_kv_heads = 1, .head_dim = 192};
  attention.value_dim = 128, attention.kv_rank = 512, attention.rope.num_dims = 64;
  const auto check = [&] {
    model.layers = {{.attention = attention, .mlp = MlpConfig{.n_ff = 48}, .experts = false}};
    return ops_->CheckModel(model);
  };
  EXPECT_OK(check());
  attention.kv_rank = 528;
  EXPECT_THAT(check(), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("up to 512 numbers of a value")));
  attention.kv_rank = 48;
  EXPECT_THAT(check(), StatusIs(absl::StatusCode::kUnimplemented,
                                HasSubstr("deepseek2 has latent attention with matrices of heads 48 wide")));
}

// A matrix whose last tile of each row ends with zeros, between columns of the input that are not to be read.
TEST_F(CudaCheckModelTest, MultipliesByMatricesThatEndInHalfATile) {
  for (const int64_t rows : {3, 70}) {
    constexpr int64_t kIn = 48, kOut = 40;
    const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kF32, kOut, kIn, 9, 0.1f);
    const GuardedBytes device_weight(ops_, weight.memory.span());
    std::vector<float> in = Rounded(RandomFloats(rows * kIn, 8), act()), want = RandomFloats(rows * kOut, 12);
    const DeviceRowsBuffer device_in(ops_, act(), in, rows, kIn, /*gap=*/16), out(ops_, DType::kF32, want, rows, kOut);
    ASSERT_OK(reference_.MatMul(HostTensor(in, rows, kIn), weight.matrix, nullptr, HostTensor(want, rows, kOut), true));
    ASSERT_OK(ops_->MatMul(device_in.tensor(), {weight.matrix.layout, device_weight.data()}, nullptr, out.tensor(), true));
    EXPECT_TRUE(Close(out.Read(), want, 0.02, 0.01)) << rows << " rows";
  }
}

}  // namespace
}  // namespace ferry
