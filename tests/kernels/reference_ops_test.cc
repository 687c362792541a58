#include "kernels/reference/reference_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/kv_cache_format.h"
#include "tests/kernels/plain_params.h"
#include "tests/testing/close.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr double kEpsilon = 1e-6;  // of an F32 result

Tensor TensorOf(std::vector<float>& values, int64_t rows, int64_t cols) { return {values.data(), DType::kF32, rows, cols}; }

class ReferenceOpsTest : public testing::Test {
 protected:
  ReferenceOps ops_;
};

// ----------------------------------------------------------------------------------------------------- norms and
// products

TEST_F(ReferenceOpsTest, NormalisesByTheRootMeanSquare) {
  std::vector<float> x = {3, 4, 0, 0}, out(4);
  const std::vector<float> weight = {1, 2};
  ASSERT_OK(ops_.RmsNorm(TensorOf(x, 2, 2), weight.data(), 0.5, TensorOf(out, 2, 2)));
  const double rms = std::sqrt((9 + 16) / 2.0 + 0.5);
  EXPECT_TRUE(Close(out, std::vector<double>{3 / rms, 2 * 4 / rms, 0, 0}, kEpsilon));
}

TEST_F(ReferenceOpsTest, RefusesANormThatDoesNotFit) {
  std::vector<float> x(4), out(6), weight(2);
  EXPECT_THAT(ops_.RmsNorm(TensorOf(x, 2, 2), weight.data(), 1e-5, TensorOf(out, 3, 2)),
              StatusIs(kInvalid, HasSubstr("out is [3, 2], want [2, 2]")));
  EXPECT_THAT(ops_.RmsNorm(TensorOf(x, 2, 2), nullptr, 1e-5, TensorOf(out, 2, 2)),
              StatusIs(kInvalid, HasSubstr("weight is null")));
  EXPECT_THAT(ops_.RmsNorm(TensorOf(x, 2, 2), weight.data(), -1, TensorOf(out, 2, 2)),
              StatusIs(kInvalid, HasSubstr("epsilon is -1")));
  EXPECT_THAT(ops_.RmsNorm(Tensor(x.data(), DType::kF32, 2, 2, 1), weight.data(), 0, TensorOf(out, 2, 2)),
              StatusIs(kInvalid, HasSubstr("x has a stride of 1")));
}

TEST_F(ReferenceOpsTest, MultipliesByTheTransposedWeight) {
  // W = [1 at column 0; 2 at column 31], so y0 = x0 + b0, y1 = 2 x31 + b1.
  std::vector<float> weights(2 * 32), in(2 * 32), out = {100, 100, 100, 100};
  weights[0] = 1;
  weights[32 + 31] = 2;
  in[0] = 5, in[31] = 7, in[32] = -1, in[63] = 0.5f;
  const OwnedTiledMatrix weight = TiledMatrixOf(weights, 2, 32);
  const std::vector<float> bias = {10, 20};
  ASSERT_OK(ops_.MatMul(TensorOf(in, 2, 32), weight.matrix, bias.data(), TensorOf(out, 2, 2), /*accumulate=*/false));
  EXPECT_THAT(out, ElementsAre(15, 34, 9, 21));
  ASSERT_OK(ops_.MatMul(TensorOf(in, 2, 32), weight.matrix, nullptr, TensorOf(out, 2, 2), /*accumulate=*/true));
  EXPECT_THAT(out, ElementsAre(20, 48, 8, 22));
}

TEST_F(ReferenceOpsTest, MultipliesEveryTypeAsItsValuesSay) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kMXFP4}) {
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype, 19, 96, 1);
    std::vector<float> in = RandomFloats(3 * 96, 2), out(3 * 19);
    ASSERT_OK(ops_.MatMul(TensorOf(in, 3, 96), weight.matrix, nullptr, TensorOf(out, 3, 19), false));
    std::vector<double> want(3 * 19);
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t col = 0; col < 19; ++col) {
        for (int64_t i = 0; i < 96; ++i) want[row * 19 + col] += in[row * 96 + i] * TiledValue(weight.matrix, col, i);
      }
    }
    EXPECT_TRUE(Close(out, want, 1e-5, kEpsilon)) << NameOf(dtype);
  }
}

TEST_F(ReferenceOpsTest, ReadsAndWritesStridedRows) {
  const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kF32, 2, 32, 1);
  std::vector<float> in = RandomFloats(2 * 40, 2), dense(2 * 32), out(2 * 5, -1), want(4);
  for (int64_t row = 0; row < 2; ++row) std::copy_n(&in[row * 40], 32, &dense[row * 32]);
  ASSERT_OK(ops_.MatMul(Tensor(in.data(), DType::kF32, 2, 32, 40), weight.matrix, nullptr,
                        Tensor(out.data(), DType::kF32, 2, 2, 5), false));
  ASSERT_OK(ops_.MatMul(TensorOf(dense, 2, 32), weight.matrix, nullptr, TensorOf(want, 2, 2), false));
  EXPECT_THAT(out, ElementsAre(want[0], want[1], -1, -1, -1, want[2], want[3], -1, -1, -1));
}

TEST_F(ReferenceOpsTest, RefusesAProductThatDoesNotFit) {
  const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kF32, 2, 32, 1);
  std::vector<float> in(64), out(6);
  EXPECT_THAT(ops_.MatMul(TensorOf(in, 1, 64), weight.matrix, nullptr, TensorOf(out, 1, 2), false),
              StatusIs(kInvalid, HasSubstr("in is [1, 64], want [1, 32]")));
  EXPECT_THAT(ops_.MatMul(TensorOf(in, 2, 32), weight.matrix, nullptr, TensorOf(out, 2, 3), false),
              StatusIs(kInvalid, HasSubstr("out is [2, 3], want [2, 2]")));
  EXPECT_THAT(ops_.MatMul(Tensor(in.data(), DType::kBF16, 2, 32), weight.matrix, nullptr, TensorOf(out, 2, 2), false),
              StatusIs(kInvalid, HasSubstr("in is of type BF16, want F32")));
  EXPECT_THAT(ops_.MatMul(TensorOf(in, 2, 32), {weight.matrix.layout, nullptr}, nullptr, TensorOf(out, 2, 2), false),
              StatusIs(kInvalid, HasSubstr("weight is null")));
  EXPECT_THAT(
      ops_.MatMul(TensorOf(in, 2, 32), {weight.matrix.layout, weight.matrix.data + 4}, nullptr, TensorOf(out, 2, 2), false),
      StatusIs(kInvalid, HasSubstr("weight is not aligned")));
  EXPECT_OK(ops_.MatMul(Tensor(nullptr, DType::kF32, 0, 32), weight.matrix, nullptr, Tensor(nullptr, DType::kF32, 0, 2), false));
}

// --------------------------------------------------------------------------------------------------------------
// attention

// A cache of one or two kv heads with its memory.
struct Cache {
  Cache(DType dtype, int64_t num_blocks, int64_t num_kv_heads, int64_t head_dim, bool ring = false)
      : keys(KvPlaneBytes(dtype, num_blocks, num_kv_heads, head_dim)),
        values(KvPlaneBytes(dtype, num_blocks, num_kv_heads, head_dim)),
        layer{.keys = keys.data(),
              .values = values.data(),
              .key_type = dtype,
              .value_type = dtype,
              .num_blocks = num_blocks,
              .num_kv_heads = num_kv_heads,
              .head_dim = head_dim,
              .ring = ring} {}
  AlignedBytes keys, values;
  KvLayer layer;
};

constexpr RopeConfig kNoTurn = {.freq_base = 10000, .num_dims = 0};

TEST_F(ReferenceOpsTest, TurnsQueriesAndKeysAndStoresThem) {
  // One head of 4: pairs (0, 2) and (1, 3) turn by p * 1 and p * 0.01; the factor doubles them.
  Cache cache(DType::kF32, 2, 1, 4);
  const RopeConfig rope = {.freq_base = 10000, .num_dims = 4, .attention_factor = 2};
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{}, {{0, 2, 32, {1, 0}, {}}}}));
  std::vector<float> qkv(2 * 12), q(2 * 4);
  const std::vector<float> second = {1, 0, 0, 0, /*k*/ 0, 1, 0, 0, /*v*/ 5, 6, 7, 8};
  std::copy(second.begin(), second.end(), &qkv[12]);  // the row at position 33
  ASSERT_OK(ops_.RopeAndStore(*batch, 0, rope, {}, TensorOf(qkv, 2, 12), cache.layer, TensorOf(q, 2, 4)));
  EXPECT_TRUE(
      Close(std::vector(q.begin() + 4, q.end()), std::vector<double>{2 * std::cos(33.0), 0, 2 * std::sin(33.0), 0}, kEpsilon));
  std::vector<float> key(4), value(4);
  const int64_t row = KvRow(cache.layer, /*block=*/0, 0, 1);  // position 33 is in the table's second block
  LoadKey(cache.layer, row, key.data());
  LoadValue(cache.layer, row, value.data());
  EXPECT_TRUE(Close(key, std::vector<double>{0, 2 * std::cos(0.33), 0, 2 * std::sin(0.33)}, kEpsilon));
  EXPECT_THAT(value, ElementsAre(5, 6, 7, 8));
}

TEST_F(ReferenceOpsTest, LeavesDimensionsBeyondTheRotatedOnes) {
  Cache cache(DType::kF32, 1, 1, 4);
  const RopeConfig rope = {.freq_base = 10000, .num_dims = 2, .attention_factor = 3};
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{}, {{0, 1, 1, {0}, {}}}}));
  std::vector<float> qkv(12, 1), q(4);
  ASSERT_OK(ops_.RopeAndStore(*batch, 0, rope, {}, TensorOf(qkv, 1, 12), cache.layer, TensorOf(q, 1, 4)));
  EXPECT_TRUE(
      Close(q, std::vector<double>{3 * (std::cos(1.0) - std::sin(1.0)), 3 * (std::cos(1.0) + std::sin(1.0)), 1, 1}, kEpsilon));
}

// Stores keys and values [positions, 2 * dim] of one kv head, unrotated, and attends with the queries [rows, heads *
// dim] of the last rows.
std::vector<float> Attend(ReferenceOps& ops, Cache& cache, const std::vector<float>& kv, int64_t dim, std::vector<float> q,
                          int64_t rows, int64_t window, const float* sinks) {
  const int64_t positions = static_cast<int64_t>(kv.size()) / (2 * dim), cols = static_cast<int64_t>(q.size()) / rows;
  std::vector<int32_t> table(cache.layer.num_blocks);
  std::iota(table.rbegin(), table.rend(), 0);
  for (int64_t position = 0; position < positions; ++position) {
    auto batch = ops.PrepareBatch({{}, {{0, 1, position, cache.layer.ring ? std::vector<int32_t>() : table, table}}});
    std::vector<float> qkv(dim), unused(dim);
    qkv.insert(qkv.end(), kv.begin() + position * 2 * dim, kv.begin() + (position + 1) * 2 * dim);
    EXPECT_OK(ops.RopeAndStore(**batch, 0, kNoTurn, {}, TensorOf(qkv, 1, 3 * dim), cache.layer, TensorOf(unused, 1, dim)));
  }
  auto batch = ops.PrepareBatch({{}, {{0, rows, positions - rows, cache.layer.ring ? std::vector<int32_t>() : table, table}}});
  std::vector<float> out(q.size());
  EXPECT_OK(ops.Attention(**batch, 0, TensorOf(q, rows, cols), cache.layer, PlainAttention(cache.layer, window, sinks),
                          TensorOf(out, rows, cols)));
  return out;
}

TEST_F(ReferenceOpsTest, WeighsValuesBySoftmax) {
  // Keys 0 and ln(9) * sqrt(1) along one dimension, query 1: weights 1/10 and 9/10.
  Cache cache(DType::kF32, 1, 1, 1);
  const float ln9 = std::log(9.0f);
  const auto out = Attend(ops_, cache, {0, 100, ln9, 200}, 1, {1}, 1, 0, nullptr);
  EXPECT_TRUE(Close(out, std::vector<double>{190}, 1e-4));
}

TEST_F(ReferenceOpsTest, ScalesScoresByTheRootOfTheHead) {
  Cache cache(DType::kF32, 1, 1, 4);
  const float ln9 = std::log(9.0f);
  const auto out = Attend(ops_, cache, {0, 0, 0, 0, 1, 1, 1, 1, 2 * ln9, 0, 0, 0, 2, 2, 2, 2}, 4, {1, 0, 0, 0}, 1, 0, nullptr);
  EXPECT_TRUE(Close(out, std::vector<double>(4, 1.9), 1e-5));
}

TEST_F(ReferenceOpsTest, LetsASinkTakeItsShare) {
  Cache cache(DType::kF32, 1, 1, 1);
  const float sinks[] = {std::log(3.0f), -1e30f};
  // One key of score 0: weight 1 / (1 + 3) for the first head, 1 for the second.
  const auto out = Attend(ops_, cache, {0, 8}, 1, {1, 1}, 1, 0, sinks);
  EXPECT_TRUE(Close(out, std::vector<double>{2, 8}, kEpsilon));
}

TEST_F(ReferenceOpsTest, SeesNoLaterPosition) {
  Cache cache(DType::kF32, 1, 1, 1);
  const auto out = Attend(ops_, cache, {0, 1, 0, 2, 0, 6}, 1, {1, 1, 1}, 3, 0, nullptr);
  EXPECT_TRUE(Close(out, std::vector<double>{1, 1.5, 3}, kEpsilon));
}

TEST_F(ReferenceOpsTest, SeesOnlyItsWindow) {
  Cache cache(DType::kF32, 1, 1, 1);
  const auto out = Attend(ops_, cache, {0, 100, 0, 2, 0, 6}, 1, {1, 1}, 2, 2, nullptr);
  EXPECT_TRUE(Close(out, std::vector<double>{51, 4}, kEpsilon));
}

TEST_F(ReferenceOpsTest, HoldsAWindowInARing) {
  // 100 positions through a ring of two blocks: a window of 3 over the last.
  Cache cache(DType::kF32, 2, 1, 1, /*ring=*/true);
  std::vector<float> kv(200);
  for (int position = 0; position < 100; ++position) kv[2 * position + 1] = static_cast<float>(position);
  const auto out = Attend(ops_, cache, kv, 1, {1, 1}, 2, 3, nullptr);
  EXPECT_TRUE(Close(out, std::vector<double>{97, 98}, 1e-4));
}

TEST_F(ReferenceOpsTest, SharesAKvHeadAmongItsQueryHeads) {
  Cache cache(DType::kF32, 1, 2, 1);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{}, {{0, 1, 0, {0}, {}}}}));
  std::vector<float> qkv = {1, 1, 1, 1, /*k*/ 0, 0, /*v*/ 5, 9}, q(4), out(4);
  ASSERT_OK(ops_.RopeAndStore(*batch, 0, kNoTurn, {}, TensorOf(qkv, 1, 8), cache.layer, TensorOf(q, 1, 4)));
  ASSERT_OK(ops_.Attention(*batch, 0, TensorOf(q, 1, 4), cache.layer, PlainAttention(cache.layer), TensorOf(out, 1, 4)));
  EXPECT_THAT(out, ElementsAre(5, 5, 9, 9));
}

TEST_F(ReferenceOpsTest, KeepsSequencesApart) {
  Cache cache(DType::kF16, 2, 1, 1);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{}, {{0, 1, 0, {1}, {}}, {1, 1, 0, {0}, {}}}}));
  std::vector<float> qkv = {1, 0, 3, /*second*/ 1, 0, 4}, q(2), out(2);
  ASSERT_OK(ops_.RopeAndStore(*batch, 0, kNoTurn, {}, TensorOf(qkv, 2, 3), cache.layer, TensorOf(q, 2, 1)));
  ASSERT_OK(ops_.Attention(*batch, 0, TensorOf(q, 2, 1), cache.layer, PlainAttention(cache.layer), TensorOf(out, 2, 1)));
  EXPECT_THAT(out, ElementsAre(3, 4));
}

TEST_F(ReferenceOpsTest, RefusesACacheThatDoesNotHoldTheRows) {
  Cache cache(DType::kF16, 2, 1, 32);
  std::vector<float> qkv(2 * 96), q(2 * 32), out(2 * 32);
  const auto store = [&](const KvLayer& layer, BatchSequence sequence) {
    auto batch = ops_.PrepareBatch({{}, {sequence}});
    EXPECT_OK(batch);
    return ops_.RopeAndStore(**batch, 0, kNoTurn, {}, TensorOf(qkv, 2, 96), layer, TensorOf(q, 2, 32));
  };
  EXPECT_OK(store(cache.layer, {0, 2, 0, {1}, {}}));
  EXPECT_THAT(store(cache.layer, {0, 2, 0, {}, {}}), StatusIs(kInvalid, HasSubstr("blocks of the sequence at row 0 has 0")));
  EXPECT_THAT(store(cache.layer, {0, 2, 0, {2}, {}}), StatusIs(kInvalid, HasSubstr("names block 2, want 0 to 1")));
  KvLayer ring = cache.layer;
  ring.ring = true;
  EXPECT_OK(store(ring, {0, 2, 1000, {}, {1}}));
  EXPECT_THAT(store(ring, {0, 2, 1000, {}, {}}), StatusIs(kInvalid, HasSubstr("ring_blocks")));
  KvLayer other = cache.layer;
  other.keys = nullptr;
  EXPECT_THAT(store(other, {0, 2, 0, {1}, {}}), StatusIs(kInvalid, HasSubstr("cache.keys is null")));
  other = cache.layer;
  other.value_type = DType::kMXFP4;
  EXPECT_THAT(store(other, {0, 2, 0, {1}, {}}), StatusIs(kInvalid, HasSubstr("cache.values is of type MXFP4")));
  other = cache.layer;
  other.head_dim = 16;
  other.key_type = DType::kQ8_0;
  EXPECT_THAT(store(other, {0, 2, 0, {1}, {}}), StatusIs(kInvalid, HasSubstr("head_dim is 16")));
  // A window of 33 over two rows needs 34 positions at once.
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{}, {{0, 2, 100, {}, {1}}}}));
  EXPECT_THAT(ops_.Attention(*batch, 0, TensorOf(q, 2, 32), ring, PlainAttention(ring, 33), TensorOf(out, 2, 32)),
              StatusIs(kInvalid, HasSubstr("too few for positions [68, 102)")));
  EXPECT_THAT(ops_.Attention(*batch, 0, TensorOf(q, 2, 32), ring, PlainAttention(ring, -1), TensorOf(out, 2, 32)),
              StatusIs(kInvalid, HasSubstr("window is -1")));
  EXPECT_THAT(ops_.Attention(*batch, 1, TensorOf(q, 2, 32), ring, PlainAttention(ring, 3), TensorOf(out, 2, 32)),
              StatusIs(kInvalid, HasSubstr("rows [1, 3)")));
}

TEST_F(ReferenceOpsTest, RefusesHeadsThatDoNotDivide) {
  Cache cache(DType::kF32, 1, 2, 4);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{}, {{0, 1, 0, {0}, {}}}}));
  std::vector<float> qkv(64), q(64), out(64);
  EXPECT_THAT(ops_.RopeAndStore(*batch, 0, kNoTurn, {}, TensorOf(qkv, 1, 28), cache.layer, TensorOf(q, 1, 12)),
              StatusIs(kInvalid, HasSubstr("q_out has 12 columns, want a multiple of 8")));
  EXPECT_THAT(ops_.RopeAndStore(*batch, 0, kNoTurn, {}, TensorOf(qkv, 1, 28), cache.layer, TensorOf(q, 1, 16)),
              StatusIs(kInvalid, HasSubstr("qkv is [1, 28], want [1, 32]")));
  EXPECT_THAT(ops_.Attention(*batch, 0, TensorOf(q, 1, 12), cache.layer, PlainAttention(cache.layer), TensorOf(out, 1, 12)),
              StatusIs(kInvalid, HasSubstr("q has 12 columns")));
  RopeConfig rope = {.freq_base = 10000, .num_dims = 6};
  EXPECT_THAT(ops_.RopeAndStore(*batch, 0, rope, {}, TensorOf(qkv, 1, 32), cache.layer, TensorOf(q, 1, 16)),
              StatusIs(kInvalid, HasSubstr("rope.num_dims is 6, want 0 to 4")));
  rope.num_dims = 3;
  EXPECT_THAT(ops_.RopeAndStore(*batch, 0, rope, {}, TensorOf(qkv, 1, 32), cache.layer, TensorOf(q, 1, 16)),
              StatusIs(kInvalid, HasSubstr("even")));
}

// ----------------------------------------------------------------------------------------------------------------
// experts

TEST_F(ReferenceOpsTest, RoutesToTheBestAndBreaksTiesToTheLowerId) {
  // Logits: 1, 3, 3, 2 for the first token, 0 everywhere but the bias for the second.
  std::vector<float> in = {1, 0}, weight = {1, 3, 3, 0}, weights(2 * 3);
  const std::vector<float> bias = {0, 0, 0, 2};
  std::vector<int32_t> experts(2 * 3);
  ASSERT_OK(ops_.Route(TensorOf(in, 2, 1), {.weight = weight.data(), .bias = bias.data()}, PlainRouter(4, 3), experts.data(),
                       weights.data()));
  EXPECT_THAT(experts, ElementsAre(1, 2, 3, 3, 0, 1));
  const double first = 2 + std::exp(-1.0), second = 1 + 2 * std::exp(-2.0);
  EXPECT_TRUE(Close(weights,
                    std::vector<double>{1 / first, 1 / first, std::exp(-1.0) / first, 1 / second, std::exp(-2.0) / second,
                                        std::exp(-2.0) / second},
                    kEpsilon));
}

TEST_F(ReferenceOpsTest, RoutesABrokenRowToExpertsThatExist) {
  std::vector<float> in = {std::numeric_limits<float>::quiet_NaN()}, weight = {1, 2, 3}, weights(2);
  std::vector<int32_t> experts(2);
  ASSERT_OK(ops_.Route(TensorOf(in, 1, 1), {.weight = weight.data(), .bias = nullptr}, PlainRouter(3, 2), experts.data(),
                       weights.data()));
  EXPECT_THAT(experts, ElementsAre(0, 1));
  EXPECT_TRUE(std::isnan(weights[0]));
}

TEST_F(ReferenceOpsTest, RefusesToRouteOutOfRange) {
  std::vector<float> in(2), weight(8), weights(8);
  std::vector<int32_t> experts(8);
  EXPECT_THAT(ops_.Route(TensorOf(in, 1, 2), {.weight = weight.data(), .bias = nullptr}, PlainRouter(4, 5), experts.data(),
                         weights.data()),
              StatusIs(kInvalid, HasSubstr("top_k is 5, want 1 to 4")));
  EXPECT_THAT(ops_.Route(TensorOf(in, 1, 2), {.weight = weight.data(), .bias = nullptr}, PlainRouter(0, 1), experts.data(),
                         weights.data()),
              StatusIs(kInvalid, HasSubstr("num_experts is 0")));
  EXPECT_THAT(
      ops_.Route(TensorOf(in, 1, 2), {.weight = nullptr, .bias = nullptr}, PlainRouter(4, 1), experts.data(), weights.data()),
      StatusIs(kInvalid, HasSubstr("weight is null")));
  EXPECT_THAT(
      ops_.Route(TensorOf(in, 1, 2), {.weight = weight.data(), .bias = nullptr}, PlainRouter(4, 1), nullptr, weights.data()),
      StatusIs(kInvalid, HasSubstr("experts is null")));
}

// An expert whose gate and up read one input each and whose down writes one output: the arithmetic by hand.
struct HandExpert {
  HandExpert() : layout(*ExpertLayout::Create(DType::kF32, DType::kF32, DType::kF32, 32, 32, true)), record(layout.bytes) {
    std::vector<float> gate(32 * 32), up(32 * 32), down(32 * 32);
    gate[0] = 1;           // gate of hidden 0 = x0 + 0.25
    up[1] = 1;             // up of hidden 0 = x1 - 0.5
    down[5 * 32 + 0] = 2;  // out 5 = 2 * hidden 0 + 3
    Put(layout.gate, layout.gate_offset, gate);
    Put(layout.up, layout.up_offset, up);
    Put(layout.down, layout.down_offset, down);
    const_cast<float*>(layout.GateBias(record.data()))[0] = 0.25f;
    const_cast<float*>(layout.UpBias(record.data()))[0] = -0.5f;
    const_cast<float*>(layout.DownBias(record.data()))[5] = 3;
  }
  void Put(const TiledLayout& matrix, int64_t offset, const std::vector<float>& values) {
    EXPECT_OK(TileRows(matrix, 0, matrix.rows, std::as_bytes(std::span(values)), record.span().subspan(offset, matrix.bytes)));
  }
  static double Out5(double x0, double x1) {
    const double g = std::min(x0 + 0.25, 7.0), u = std::clamp(x1 - 0.5, -7.0, 7.0);
    return 2 * (u + 1) * g / (1 + std::exp(-1.702 * g)) + 3;
  }
  ExpertLayout layout;
  AlignedBytes record;
};

TEST_F(ReferenceOpsTest, ComputesAnExpertAsGptOssDoes) {
  const HandExpert expert;
  // Small, above the limits, below them (the gate has no lower limit).
  const std::vector<std::pair<float, float>> inputs = {{0.5f, 2.0f}, {20.0f, 30.0f}, {-30.0f, -30.0f}};
  std::vector<float> in(3 * 32), contributions(4 * 32, -1);
  for (int i = 0; i < 3; ++i) in[i * 32] = inputs[i].first, in[i * 32 + 1] = inputs[i].second;
  // Group 1 of two, its entries in another order than the rows.
  const std::vector<int32_t> offsets = {0, 0, 3}, rows = {2, 0, 1}, outs = {0, 3, 1};
  const ExpertGroups groups = {2, 3, offsets.data(), rows.data(), outs.data()};
  const std::vector<ExpertUse> uses = {{expert.record.data(), 1, 3}};
  ASSERT_OK(ops_.ExpertMlp(expert.layout, uses, groups, GptOssGlu(), TensorOf(in, 3, 32), TensorOf(contributions, 4, 32)));
  EXPECT_NEAR(contributions[3 * 32 + 5], HandExpert::Out5(0.5, 2.0), 1e-5);
  EXPECT_NEAR(contributions[1 * 32 + 5], HandExpert::Out5(20, 30), 1e-5);
  EXPECT_NEAR(contributions[1 * 32 + 5], 2 * 8 * 7 / (1 + std::exp(-1.702 * 7)) + 3, 1e-4);
  EXPECT_NEAR(contributions[0 * 32 + 5], HandExpert::Out5(-30, -30), 1e-5);
  EXPECT_EQ(contributions[3 * 32 + 4], 0);  // no bias, no weight
  EXPECT_EQ(contributions[2 * 32 + 5], -1) << "a row that no entry names is left alone";
}

TEST_F(ReferenceOpsTest, RefusesGroupsThatDoNotFit) {
  const HandExpert expert;
  std::vector<float> in(2 * 32), contributions(2 * 32);
  std::vector<int32_t> offsets = {0, 1, 2}, rows = {0, 1}, outs = {0, 1};
  std::vector<ExpertUse> uses = {{expert.record.data(), 0, 1}, {expert.record.data(), 1, 1}};
  const auto run = [&] {
    return ops_.ExpertMlp(expert.layout, uses, {2, 2, offsets.data(), rows.data(), outs.data()}, {}, TensorOf(in, 2, 32),
                          TensorOf(contributions, 2, 32));
  };
  ASSERT_OK(run());
  rows[1] = 2;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("groups.rows[1] is 2, want 0 to 1")));
  rows[1] = 1, outs[0] = -1;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("groups.outs[0] is -1")));
  outs[0] = 0, offsets[1] = 3;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("groups.offsets[0]")));
  offsets[1] = 1, uses[1].group = 2;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("uses[1].group is 2, want 0 to 1")));
  uses[1].group = 1, uses[1].num_rows = 2;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("uses[1].num_rows is 2, want 1")));
  uses[1].num_rows = 1, uses[0].record = nullptr;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("uses[0].record is null")));
  uses[0].record = expert.record.data() + 64;
  EXPECT_THAT(run(), StatusIs(kInvalid, HasSubstr("uses[0].record is not aligned")));
  uses.clear();
  EXPECT_OK(run());
}

TEST_F(ReferenceOpsTest, RefusesAnExpertOfAnotherWidth) {
  const HandExpert expert;
  std::vector<float> in(64), contributions(64);
  EXPECT_THAT(ops_.ExpertMlp(expert.layout, {}, {}, {}, TensorOf(in, 1, 64), TensorOf(contributions, 2, 32)),
              StatusIs(kInvalid, HasSubstr("in is [1, 64], want [1, 32]")));
  EXPECT_THAT(ops_.ExpertMlp(expert.layout, {}, {}, {}, TensorOf(in, 2, 32), TensorOf(contributions, 1, 64)),
              StatusIs(kInvalid, HasSubstr("contributions is [1, 64], want [1, 32]")));
}

TEST_F(ReferenceOpsTest, CombinesContributionsByWeight) {
  std::vector<float> contributions = {1, 2, 10, 20, 3, 4, 30, 40}, x = {100, 200, 300, 400};
  const std::vector<float> weights = {0.5f, 0.25f, 1, 0};
  ASSERT_OK(ops_.Combine(TensorOf(contributions, 4, 2), weights.data(), 2, TensorOf(x, 2, 2)));
  EXPECT_THAT(x, ElementsAre(103, 206, 303, 404));
  EXPECT_THAT(ops_.Combine(TensorOf(contributions, 4, 2), weights.data(), 3, TensorOf(x, 2, 2)),
              StatusIs(kInvalid, HasSubstr("contributions is [4, 2], want [6, 2]")));
  EXPECT_THAT(ops_.Combine(TensorOf(contributions, 4, 2), nullptr, 2, TensorOf(x, 2, 2)),
              StatusIs(kInvalid, HasSubstr("weights is null")));
  EXPECT_THAT(ops_.Combine(TensorOf(contributions, 4, 2), weights.data(), 0, TensorOf(x, 2, 2)),
              StatusIs(kInvalid, HasSubstr("top_k is 0")));
}

// ------------------------------------------------------------------------------------------------------------ all
// together

// One layer for `cut` rows at a time: every operation whose rows must not see each other.
std::vector<float> Layer(ReferenceOps& ops, int64_t rows, int64_t cut) {
  constexpr int64_t kEmbd = 64, kHeads = 4, kKvHeads = 2, kDim = 32, kExperts = 5, kTopK = 2;
  const OwnedTiledMatrix qkv_weight = RandomTiledMatrix(DType::kQ8_0, (kHeads + 2 * kKvHeads) * kDim, kEmbd, 1, 0.1f);
  const OwnedTiledMatrix out_weight = RandomTiledMatrix(DType::kQ8_0, kEmbd, kHeads * kDim, 2, 0.1f);
  const ExpertLayout layout = *ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, kEmbd, 32, true);
  std::vector<AlignedBytes> records;
  for (int64_t expert = 0; expert < kExperts; ++expert) records.push_back(RandomExpertRecord(layout, 10 + expert));
  const std::vector<float> norm(kEmbd, 1), router = RandomFloats(kExperts * kEmbd, 3);
  Cache cache(DType::kF16, 4, kKvHeads, kDim);
  const RopeConfig rope = {.freq_base = 10000, .num_dims = kDim};
  std::vector<float> x = RandomFloats(rows * kEmbd, 4);
  for (int64_t first = 0; first < rows; first += cut) {
    const int64_t n = std::min(cut, rows - first);
    auto batch = ops.PrepareBatch({{}, {{0, n, first, {2, 0, 3}, {}}}});
    std::vector<float> h(n * kEmbd), qkv(n * qkv_weight.matrix.layout.rows), q(n * kHeads * kDim), a(n * kHeads * kDim);
    std::vector<float> weights(n * kTopK), contributions(n * kTopK * kEmbd);
    std::vector<int32_t> experts(n * kTopK), offsets(kExperts + 1), entry_rows(n * kTopK), outs(n * kTopK);
    const Tensor part(&x[first * kEmbd], DType::kF32, n, kEmbd);
    EXPECT_OK(ops.RmsNorm(part, norm.data(), 1e-5, TensorOf(h, n, kEmbd)));
    EXPECT_OK(
        ops.MatMul(TensorOf(h, n, kEmbd), qkv_weight.matrix, nullptr, TensorOf(qkv, n, qkv_weight.matrix.layout.rows), false));
    EXPECT_OK(ops.RopeAndStore(**batch, 0, rope, {}, TensorOf(qkv, n, qkv_weight.matrix.layout.rows), cache.layer,
                               TensorOf(q, n, kHeads * kDim)));
    EXPECT_OK(ops.Attention(**batch, 0, TensorOf(q, n, kHeads * kDim), cache.layer, PlainAttention(cache.layer),
                            TensorOf(a, n, kHeads * kDim)));
    EXPECT_OK(ops.MatMul(TensorOf(a, n, kHeads * kDim), out_weight.matrix, nullptr, part, true));
    EXPECT_OK(ops.RmsNorm(part, norm.data(), 1e-5, TensorOf(h, n, kEmbd)));
    EXPECT_OK(ops.Route(TensorOf(h, n, kEmbd), {.weight = router.data(), .bias = nullptr}, PlainRouter(kExperts, kTopK),
                        experts.data(), weights.data()));
    EXPECT_OK(ops.GroupByExpert(experts.data(), n, kTopK, kExperts, offsets.data(), entry_rows.data(), outs.data()));
    std::vector<ExpertUse> uses;
    for (int32_t expert = 0; expert < kExperts; ++expert) {
      uses.push_back({records[expert].data(), expert, offsets[expert + 1] - offsets[expert]});
    }
    EXPECT_OK(ops.ExpertMlp(layout, uses, {kExperts, n * kTopK, offsets.data(), entry_rows.data(), outs.data()}, {},
                            TensorOf(h, n, kEmbd), TensorOf(contributions, n * kTopK, kEmbd)));
    EXPECT_OK(ops.Combine(TensorOf(contributions, n * kTopK, kEmbd), weights.data(), kTopK, part));
  }
  return x;
}

TEST_F(ReferenceOpsTest, GivesTheSameBitsHoweverAPromptIsCut) {
  const std::vector<float> whole = Layer(ops_, 70, 70);
  for (const int64_t cut : {1, 7, 32, 69}) EXPECT_EQ(Layer(ops_, 70, cut), whole) << cut;
}

}  // namespace
}  // namespace ferry
