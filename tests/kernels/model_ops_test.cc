// Operations that gpt-oss does not use: head norms, rotation of neighbours, routers with sigmoid and groups, latent attention.
// The reference against plain loops, the CPU backend against the reference.

#include <cmath>
#include <numeric>

#include "kernels/kv_cache_format.h"
#include "kernels/rope.h"
#include "tests/kernels/cpu_backends.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// A cache with its planes, of one kv head; latent when `latent_values` is above 0.
struct OwnCache {
  OwnCache(DType type, int64_t blocks, int64_t head_dim, int64_t latent_values = 0)
      : keys(KvPlaneBytes(type, blocks, 1, head_dim)), values(KvPlaneBytes(type, blocks, 1, head_dim)) {
    layer = {.keys = keys.data(),
             .values = latent_values > 0 ? nullptr : values.data(),
             .key_type = type,
             .value_type = type,
             .num_blocks = blocks,
             .num_kv_heads = 1,
             .head_dim = head_dim,
             .latent_values = latent_values};
  }
  AlignedBytes keys, values;
  KvLayer layer;
};

TEST(ReferenceModelOps, NormalisesEachHeadBeforeTurningNeighbours) {
  ReferenceOps ops;
  OwnCache cache(DType::kF32, 1, 4);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops.PrepareBatch({{}, {{0, 1, 1, {0}, {}}}}));
  const RopeConfig rope = {.freq_base = 10000, .num_dims = 2, .neighbours = true};
  const std::vector<float> query_norm = {1, 2, 1, 1}, key_norm = {1, 1, 1, 3};
  std::vector<float> qkv = {2, 2, 2, 2, /*k*/ 0, 0, 0, 4, /*v*/ 5, 6, 7, 8}, q(4), key(4);
  ASSERT_OK(ops.RopeAndStore(*batch, 0, rope, {query_norm.data(), key_norm.data(), 0}, TensorOf(qkv, 1, 12), cache.layer,
                             TensorOf(q, 1, 4)));
  const double c = std::cos(1.0), s = std::sin(1.0);  // a normalised query is 1, 2, 1, 1
  EXPECT_TRUE(Close(q, std::vector<double>{c - 2 * s, 2 * c + s, 1, 1}, 1e-6));
  LoadKey(cache.layer, 1, key.data());
  EXPECT_TRUE(Close(key, std::vector<double>{0, 0, 0, 6}, 1e-6));  // 4 / sqrt(16 / 4) * 3
}

// Logits of one row of inputs with one column.
struct Routed {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};
Routed Route(Ops& ops, std::vector<float> logits, const RouterConfig& config, const std::vector<float>& selection_bias = {}) {
  std::vector<float> in(32, 0), weight(logits.size() * 32, 0);
  in[0] = 1;
  for (size_t i = 0; i < logits.size(); ++i) weight[i * 32] = logits[i];
  Routed routed{std::vector<int32_t>(config.top_k), std::vector<float>(config.top_k)};
  const RouterWeights router = {.weight = weight.data(),
                                .selection_bias = selection_bias.empty() ? nullptr : selection_bias.data()};
  EXPECT_OK(ops.Route(TensorOf(in, 1, 32), router, config, routed.experts.data(), routed.weights.data()));
  return routed;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(ReferenceModelOps, WeighsBySoftmaxOverAllUnlessNormalised) {
  ReferenceOps ops;
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f), 0};  // shares 1, 2, 5, 1 of 9
  const Routed plain = Route(ops, logits, {.num_experts = 4, .top_k = 2, .normalise = false, .weight_scale = 3});
  EXPECT_THAT(plain.experts, ElementsAre(2, 1));
  EXPECT_TRUE(Close(plain.weights, std::vector<double>{15.0 / 9, 6.0 / 9}, 1e-6));
}

TEST(ReferenceModelOps, ChoosesWithTheBiasAndWeighsWithoutIt) {
  ReferenceOps ops;
  const Routed routed = Route(
      ops, {2, 1, 0, -1},
      {.num_experts = 4, .top_k = 2, .score = RouterScore::kSigmoid, .selection_bias = true, .weight_scale = 2.5}, {0, -1, 0, 1});
  EXPECT_THAT(routed.experts, ElementsAre(3, 0));
  const double sum = Sigmoid(-1) + Sigmoid(2);
  EXPECT_TRUE(Close(routed.weights, std::vector<double>{2.5 * Sigmoid(-1) / sum, 2.5 * Sigmoid(2) / sum}, 1e-6));
}

TEST(ReferenceModelOps, ChoosesFromTheGroupsWithTheBestTwo) {
  ReferenceOps ops;
  // The best expert is in the first group, the best pair in the second.
  RouterConfig config = {.num_experts = 6, .top_k = 2, .score = RouterScore::kSigmoid, .num_groups = 3, .groups_used = 1};
  EXPECT_THAT(Route(ops, {3, -9, 1, 1, 0, 0}, config).experts, ElementsAre(2, 3));
  config.group_best = 1;
  EXPECT_THAT(Route(ops, {3, -9, 1, 1, 0, 0}, config).experts, ElementsAre(0, 1));
}

TEST(ReferenceModelOps, RefusesGroupsThatDoNotDivide) {
  ReferenceOps ops;
  std::vector<float> in(32), weight(6 * 32), weights(6);
  std::vector<int32_t> experts(6);
  const auto route = [&](const RouterConfig& config) {
    return ops.Route(TensorOf(in, 1, 32), {.weight = weight.data()}, config, experts.data(), weights.data());
  };
  EXPECT_THAT(route({.num_experts = 6, .top_k = 2, .num_groups = 4}), StatusIs(kInvalid, HasSubstr("num_groups is 4")));
  EXPECT_THAT(route({.num_experts = 6, .top_k = 3, .num_groups = 3, .groups_used = 1}),
              StatusIs(kInvalid, HasSubstr("top_k is 3")));
}

// Latent attention of `rows` rows of one sequence, in steps of `cut`.
struct LatentShape {
  int64_t heads = 5, nope = 32, rotated = 16, rank = 64, values = 32, rows = 70;
};
std::vector<float> Latent(Ops& ops, const LatentShape& s, DType kv_type, DType weight_type, int64_t cut) {
  const int64_t dim = s.rank + s.rotated, q_dim = s.nope + s.rotated;
  const RopeConfig rope = {.freq_base = 10000, .num_dims = s.rotated, .neighbours = true};
  std::vector<float> q = RandomFloats(s.rows * s.heads * q_dim, 3), latent = RandomFloats(s.rows * dim, 5);
  const std::vector<float> norm = RandomFloats(s.rank, 7);
  AlignedBytes up_memory, value_memory;
  const auto heads_of = [&](int64_t rows, int64_t cols, uint64_t seed, AlignedBytes& memory) {
    const TiledLayout layout = TiledLayout::Create(weight_type, rows, cols).value();
    memory = AlignedBytes(layout.bytes * s.heads);
    for (int64_t head = 0; head < s.heads; ++head) {
      const OwnedTiledMatrix one = RandomTiledMatrix(weight_type, rows, cols, seed + head, 0.15f);
      std::memcpy(memory.data() + head * layout.bytes, one.matrix.data, layout.bytes);
    }
    return HeadMatrices{layout, memory.data(), s.heads};
  };
  const HeadMatrices key_up = heads_of(s.rank, s.nope, 100, up_memory), value_up = heads_of(s.values, s.rank, 200, value_memory);
  OwnCache cache(kv_type, 4, dim, s.rank);
  std::vector<float> out(s.rows * s.heads * s.values);
  for (int64_t first = 0; first < s.rows; first += cut) {
    const int64_t n = std::min(cut, s.rows - first);
    auto batch = ops.PrepareBatch({{}, {{0, n, first, {2, 0, 3}, {}}}});
    std::vector<float> absorbed(n * s.heads * dim), summed(n * s.heads * s.rank);
    const Tensor part_q(&q[first * s.heads * q_dim], DType::kF32, n, s.heads * q_dim);
    EXPECT_OK(ops.StoreLatent(**batch, 0, rope, {.weight = norm.data(), .epsilon = 1e-6},
                              Tensor(&latent[first * dim], DType::kF32, n, dim), cache.layer, part_q,
                              TensorOf(absorbed, n, s.heads * dim)));
    EXPECT_OK(ops.MatMulPerHead(part_q, key_up, TensorOf(absorbed, n, s.heads * dim)));
    EXPECT_OK(ops.Attention(**batch, 0, TensorOf(absorbed, n, s.heads * dim), cache.layer, {.scale = 0.2},
                            TensorOf(summed, n, s.heads * s.rank)));
    EXPECT_OK(ops.MatMulPerHead(TensorOf(summed, n, s.heads * s.rank), value_up,
                                Tensor(&out[first * s.heads * s.values], DType::kF32, n, s.heads * s.values)));
  }
  return out;
}

// The same from the definition: keys and values of every head made from the latent.
std::vector<double> LatentExpanded(const LatentShape& s) {
  const int64_t dim = s.rank + s.rotated, q_dim = s.nope + s.rotated;
  const RopeConfig rope = {.freq_base = 10000, .num_dims = s.rotated, .neighbours = true};
  const std::vector<double> frequencies = RopeFrequencies(rope);
  const std::vector<float> q = RandomFloats(s.rows * s.heads * q_dim, 3), latent = RandomFloats(s.rows * dim, 5);
  const std::vector<float> norm = RandomFloats(s.rank, 7);
  const auto turned = [&](const float* x, int64_t position) {
    std::vector<double> result(s.rotated);
    for (int64_t i = 0; i < s.rotated / 2; ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      result[2 * i] = x[2 * i] * std::cos(angle) - x[2 * i + 1] * std::sin(angle);
      result[2 * i + 1] = x[2 * i + 1] * std::cos(angle) + x[2 * i] * std::sin(angle);
    }
    return result;
  };
  std::vector<double> out(s.rows * s.heads * s.values);
  for (int64_t head = 0; head < s.heads; ++head) {
    const std::vector<float> key_up = RandomTiledMatrix(DType::kF32, s.rank, s.nope, 100 + head, 0.15f).Decoded();
    const std::vector<float> value_up = RandomTiledMatrix(DType::kF32, s.values, s.rank, 200 + head, 0.15f).Decoded();
    std::vector<std::vector<double>> keys, values;
    for (int64_t row = 0; row < s.rows; ++row) {
      const float* x = &latent[row * dim];
      double squares = 0;
      for (int64_t i = 0; i < s.rank; ++i) squares += double{x[i]} * x[i];
      std::vector<double> c(s.rank), key(s.nope), value(s.values);
      for (int64_t i = 0; i < s.rank; ++i) c[i] = x[i] / std::sqrt(squares / static_cast<double>(s.rank) + 1e-6) * norm[i];
      for (int64_t j = 0; j < s.nope; ++j) {
        for (int64_t i = 0; i < s.rank; ++i) key[j] += c[i] * key_up[i * s.nope + j];
      }
      for (int64_t j = 0; j < s.values; ++j) {
        for (int64_t i = 0; i < s.rank; ++i) value[j] += c[i] * value_up[j * s.rank + i];
      }
      const std::vector<double> rotated = turned(x + s.rank, row);
      key.insert(key.end(), rotated.begin(), rotated.end());
      keys.push_back(key), values.push_back(value);
      const float* query = &q[(row * s.heads + head) * q_dim];
      const std::vector<double> query_rotated = turned(query + s.nope, row);
      std::vector<double> weights;
      for (const std::vector<double>& k : keys) {
        double score = 0;
        for (int64_t i = 0; i < s.nope; ++i) score += query[i] * k[i];
        for (int64_t i = 0; i < s.rotated; ++i) score += query_rotated[i] * k[s.nope + i];
        weights.push_back(std::exp(0.2 * score));
      }
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      for (size_t t = 0; t < values.size(); ++t) {
        for (int64_t i = 0; i < s.values; ++i) out[(row * s.heads + head) * s.values + i] += weights[t] / sum * values[t][i];
      }
    }
  }
  return out;
}

TEST(ReferenceModelOps, AbsorbedLatentAttentionEqualsTheExpandedOne) {
  ReferenceOps ops;
  EXPECT_TRUE(Close(Latent(ops, {}, DType::kF32, DType::kF32, 70), LatentExpanded({}), 1e-4));
}

class CpuModelOps : public PerIsaTest<IsaCase> {};

TEST_P(CpuModelOps, RoutesAsTheReferenceDoes) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const std::vector<float> logits = RandomFloats(64, 41, 2), bias = RandomFloats(64, 43, 0.3f);
  for (const RouterScore score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    for (const bool normalise : {false, true}) {
      for (const int64_t groups : {1, 8}) {
        for (const bool biased : {false, true}) {
          const RouterConfig config = {.num_experts = 64,
                                       .top_k = 6,
                                       .score = score,
                                       .normalise = normalise,
                                       .num_groups = groups,
                                       .groups_used = (groups + 1) / 2,
                                       .group_best = score == RouterScore::kSoftmax ? 1 : 2,
                                       .weight_scale = 1.5};
          const Routed got = Route(*ops, logits, config, biased ? bias : std::vector<float>());
          const Routed want = Route(reference, logits, config, biased ? bias : std::vector<float>());
          EXPECT_EQ(got.experts, want.experts);
          EXPECT_TRUE(Close(got.weights, want.weights, 1e-6, 1e-5));
        }
      }
    }
  }
}

TEST_P(CpuModelOps, LatentAttentionIsCloseAndTheSameHoweverAPromptIsCut) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  for (const int64_t heads : {5, 20}) {  // fewer and more than a task takes
    const LatentShape shape = {.heads = heads};
    const std::vector<float> whole = Latent(*ops, shape, DType::kF16, DType::kF32, 70);
    EXPECT_TRUE(Close(whole, Latent(reference, shape, DType::kF16, DType::kF32, 70), 2e-4));
    for (const int64_t cut : {1, 33}) EXPECT_TRUE(SameBits(Latent(*ops, shape, DType::kF16, DType::kF32, cut), whole)) << cut;
  }
  // Whole blocks of a head (nope and rotated together) and a quantised cache.
  const LatentShape shape = {.nope = 96, .rotated = 32, .rank = 128, .values = 64};
  const std::vector<float> quantised = Latent(*ops, shape, DType::kQ8_0, DType::kQ8_0, 70);
  EXPECT_TRUE(Close(quantised, Latent(reference, shape, DType::kQ8_0, DType::kQ8_0, 70), 0.02));
  EXPECT_TRUE(SameBits(Latent(*ops, shape, DType::kQ8_0, DType::kQ8_0, 9), quantised));
}

INSTANTIATE_TEST_SUITE_P(, CpuModelOps, testing::ValuesIn(EachIsa()), NameOfCase);

}  // namespace
}  // namespace ferry
