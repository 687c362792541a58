// Attention and RopeAndStore of the CPU backend over the block KV cache.

#include <limits>

#include "kernels/kv_cache_format.h"
#include "tests/kernels/cpu_backends.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

struct AttentionCase {
  CpuIsa isa;
  DType keys, values;
  int64_t head_dim, kv_heads, group;
  int64_t window;
  bool sinks;
};
std::vector<AttentionCase> EachIsaAndShape() {
  std::vector<AttentionCase> cases;
  for (const CpuIsa isa : kTestedIsas) {
    for (const DType cache : {DType::kF16, DType::kQ8_0}) {
      cases.push_back({isa, cache, cache, 64, 2, 8, 0, true});
      cases.push_back({isa, cache, cache, 64, 2, 4, 20, true});
      cases.push_back({isa, cache, cache, 128, 1, 5, 128, false});
      cases.push_back({isa, cache, cache, 96, 3, 1, 0, false});
    }
    cases.push_back({isa, DType::kF16, DType::kF16, 48, 1, 3, 33, true});
    cases.push_back({isa, DType::kF16, DType::kQ8_0, 64, 2, 4, 20, true});
    cases.push_back({isa, DType::kQ8_0, DType::kF16, 64, 2, 4, 0, true});
  }
  return cases;
}
std::string NameOfAttention(const testing::TestParamInfo<AttentionCase>& info) {
  const auto& c = info.param;
  return std::string(NameOf(c.isa)) + "_" + std::string(NameOf(c.keys)) +
         (c.values == c.keys ? "" : "_" + std::string(NameOf(c.values))) + "_dim" + std::to_string(c.head_dim) + "_heads" +
         std::to_string(c.kv_heads * c.group) + "_" + std::to_string(c.kv_heads) + "_window" + std::to_string(c.window) +
         (c.sinks ? "_sinks" : "");
}

class CpuAttentionTest : public PerIsaTest<AttentionCase> {
 protected:
  static constexpr int64_t kBlocks = 40;

  int64_t q_size() const { return GetParam().kv_heads * GetParam().group * GetParam().head_dim; }
  int64_t kv_size() const { return GetParam().kv_heads * GetParam().head_dim; }

  // Every byte of the cache is part of a NaN, so that a read of an unwritten byte shows.
  KvLayer MakeCache(AlignedBytes& keys, AlignedBytes& values, bool ring = false) const {
    const auto& c = GetParam();
    KvLayer cache{.key_type = c.keys,
                  .value_type = c.values,
                  .num_blocks = kBlocks,
                  .num_kv_heads = c.kv_heads,
                  .head_dim = c.head_dim,
                  .ring = ring};
    const int64_t key_bytes = KvPlaneBytes(c.keys, kBlocks, c.kv_heads, c.head_dim);
    const int64_t value_bytes = KvPlaneBytes(c.values, kBlocks, c.kv_heads, c.head_dim);
    keys = AlignedBytes(key_bytes), values = AlignedBytes(value_bytes);
    std::memset(keys.data(), 0xFF, key_bytes), std::memset(values.data(), 0xFF, value_bytes);
    cache.keys = keys.data(), cache.values = values.data();
    return cache;
  }
  // Writes keys and values of positions [0, count) of one sequence, seeded by position so that every chunking agrees.
  void Store(const KvLayer& cache, const std::vector<int32_t>& table, int64_t count) const {
    for (int64_t position = 0; position < count; ++position) {
      const std::vector<float> k = RandomFloats(kv_size(), 1000 + position), v = RandomFloats(kv_size(), 5000 + position);
      for (int64_t head = 0; head < cache.num_kv_heads; ++head) {
        const int64_t row = KvRowAt(cache, table.data(), static_cast<int64_t>(table.size()), head, position);
        StoreKey(cache, row, k.data() + head * cache.head_dim);
        StoreValue(cache, row, v.data() + head * cache.head_dim);
      }
    }
  }
  std::vector<float> Queries(int64_t first, int64_t count) const {
    std::vector<float> q;
    for (int64_t position = first; position < first + count; ++position) {
      const std::vector<float> row = RandomFloats(q_size(), 9000 + position, 2);
      q.insert(q.end(), row.begin(), row.end());
    }
    return q;
  }
  std::vector<float> Attend(Ops& ops, const KvLayer& cache, const Batch& batch, int64_t first_row, std::vector<float> q) const {
    const std::vector<float> sinks = RandomFloats(GetParam().kv_heads * GetParam().group, 83);
    const int64_t rows = static_cast<int64_t>(q.size()) / q_size();
    GuardedRows out(rows, q_size());
    const auto prepared = ops.PrepareBatch(batch);
    EXPECT_OK(prepared.status());
    EXPECT_OK(ops.Attention(**prepared, first_row, TensorOf(q, rows, q_size()), cache,
                            PlainAttention(cache, GetParam().window, GetParam().sinks ? sinks.data() : nullptr), out.tensor()));
    EXPECT_TRUE(out.GuardsIntact());
    return out.Values();
  }
  static Batch OneSequence(int64_t first_position, int64_t rows, const std::vector<int32_t>& table) {
    Batch batch;
    batch.sequences = {{0, rows, first_position, table, table}};
    return batch;
  }
};

TEST_P(CpuAttentionTest, MatchesReferenceInPrefillAndDecode) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  AlignedBytes keys, values;
  const KvLayer cache = MakeCache(keys, values);
  const std::vector<int32_t> table = {7, 3, 30, 12, 1, 0, 22};
  Store(cache, table, 200);
  struct Stretch {
    int64_t first, rows;
  };
  for (const auto& [first, rows] : {Stretch{0, 1}, {0, 40}, {31, 2}, {64, 1}, {100, 100}, {199, 1}}) {
    SCOPED_TRACE(testing::Message() << rows << " rows from " << first);
    const Batch batch = OneSequence(first, rows, table);
    const std::vector<float> got = Attend(*ops, cache, batch, 0, Queries(first, rows));
    const std::vector<float> want = Attend(reference, cache, batch, 0, Queries(first, rows));
    EXPECT_TRUE(Close(got, want, 5e-6, 1e-5));
  }
}

TEST_P(CpuAttentionTest, GivesARowTheSameBitsInAnyChunkAndOnAnyNumberOfThreads) {
  AlignedBytes keys, values;
  const KvLayer cache = MakeCache(keys, values);
  const std::vector<int32_t> table = {5, 6, 9, 11, 2};
  Store(cache, table, 150);
  const std::vector<float> all = Attend(*MakeOps(2), cache, OneSequence(0, 150, table), 0, Queries(0, 150));
  EXPECT_TRUE(SameBits(Attend(*MakeOps(1), cache, OneSequence(0, 150, table), 0, Queries(0, 150)), all));
  const std::unique_ptr<Ops> ops = MakeOps(3);
  for (int64_t first = 0, rows = 1; first < 150; first += rows, rows = std::min<int64_t>(rows * 2 + 1, 150 - first)) {
    const std::vector<float> want(all.begin() + first * q_size(), all.begin() + (first + rows) * q_size());
    EXPECT_TRUE(SameBits(Attend(*ops, cache, OneSequence(first, rows, table), 0, Queries(first, rows)), want))
        << rows << " rows from " << first;
  }
}

TEST_P(CpuAttentionTest, KeepsSequencesApartAndStartsAtAnyRow) {
  const std::unique_ptr<Ops> ops = MakeOps();
  AlignedBytes keys, values;
  const KvLayer cache = MakeCache(keys, values);
  const std::vector<int32_t> one = {4, 8}, two = {17, 16, 15};
  Store(cache, one, 50), Store(cache, two, 90);
  Batch batch;
  batch.sequences = {{0, 3, 47, one, one}, {3, 1, 89, two, two}, {4, 20, 10, two, two}};
  std::vector<float> q = Queries(47, 3);
  for (const std::vector<float>& more : {Queries(89, 1), Queries(10, 20)}) q.insert(q.end(), more.begin(), more.end());
  const std::vector<float> got = Attend(*ops, cache, batch, 0, q);
  std::vector<float> want;
  for (const std::vector<float>& part : {Attend(*ops, cache, OneSequence(47, 3, one), 0, Queries(47, 3)),
                                         Attend(*ops, cache, OneSequence(89, 1, two), 0, Queries(89, 1)),
                                         Attend(*ops, cache, OneSequence(10, 20, two), 0, Queries(10, 20))}) {
    want.insert(want.end(), part.begin(), part.end());
  }
  EXPECT_TRUE(SameBits(got, want));
  const std::vector<float> tail(want.begin() + 2 * q_size(), want.end());
  EXPECT_TRUE(SameBits(Attend(*ops, cache, batch, 2, std::vector<float>(q.begin() + 2 * q_size(), q.end())), tail));
}

TEST_P(CpuAttentionTest, ReadsARingAsItReadsAFullTable) {
  if (GetParam().window == 0) GTEST_SKIP() << "a ring needs a window";
  const std::unique_ptr<Ops> ops = MakeOps();
  AlignedBytes keys, values, ring_keys, ring_values;
  const KvLayer cache = MakeCache(keys, values), ring_cache = MakeCache(ring_keys, ring_values, true);
  std::vector<int32_t> table, ring;
  for (int32_t i = 0; i < 12; ++i) table.push_back(i);
  for (int32_t i = 0; i < 6; ++i) ring.push_back(11 - i);  // 192 positions >= window + chunk
  Store(cache, table, 384), Store(ring_cache, ring, 384);
  Batch batch;
  batch.sequences = {{0, 10, 374, table, ring}};
  EXPECT_TRUE(SameBits(Attend(*ops, ring_cache, batch, 0, Queries(374, 10)), Attend(*ops, cache, batch, 0, Queries(374, 10))));
}

TEST_P(CpuAttentionTest, StoresRotatedKeysAsTheReferenceDoes) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  RopeConfig rope;
  rope.freq_base = 150000, rope.num_dims = GetParam().head_dim, rope.yarn_factor = 32, rope.yarn_original_context = 4096;
  rope.attention_factor = 1.3466;
  Batch batch;
  batch.sequences = {{0, 2, 30, {3, 4}, {3, 4}}, {2, 19, 0, {9}, {9}}};
  std::vector<float> qkv = RandomFloats(21 * (q_size() + 2 * kv_size()), 89);
  const auto store = [&](Ops& backend, const KvLayer& cache) {
    GuardedRows q(21, q_size());
    const auto prepared = backend.PrepareBatch(batch);
    EXPECT_OK(prepared.status());
    EXPECT_OK(backend.RopeAndStore(**prepared, 0, rope, {}, TensorOf(qkv, 21, q_size() + 2 * kv_size()), cache, q.tensor()));
    EXPECT_TRUE(q.GuardsIntact());
    return q.Values();
  };
  AlignedBytes keys, values, reference_keys, reference_values;
  const KvLayer cache = MakeCache(keys, values), reference_cache = MakeCache(reference_keys, reference_values);
  EXPECT_TRUE(Close(store(*ops, cache), store(reference, reference_cache), 2e-6, 1e-6));
  for (const bool of_keys : {true, false}) {
    std::vector<float> got(kBlocks * kKvBlockTokens * kv_size()), want = got;
    for (int64_t row = 0; row < kBlocks * kKvBlockTokens * GetParam().kv_heads; ++row) {
      const auto load = of_keys ? LoadKey : LoadValue;
      load(cache, row, got.data() + row * GetParam().head_dim);
      load(reference_cache, row, want.data() + row * GetParam().head_dim);
    }
    // A number that falls between two steps of the format may be rounded either way after a last bit's difference.
    const bool f16 = (of_keys ? GetParam().keys : GetParam().values) == DType::kF16;
    EXPECT_TRUE(Close(got, want, f16 ? 1e-6 : 0.04, f16 ? 1e-3 : 0.01));
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuAttentionTest, testing::ValuesIn(EachIsaAndShape()), NameOfAttention);

}  // namespace
}  // namespace ferry
