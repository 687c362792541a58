// Products of the CPU backend: MatMul and ExpertMlp.

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/kernels/cpu_backends.h"

namespace ferry {
namespace {

struct ProductCase {
  CpuIsa isa;
  DType dtype;
};

std::vector<ProductCase> EachIsaAndType() {
  std::vector<ProductCase> cases;
  for (const CpuIsa isa : kTestedIsas) {
    for (const DType dtype : {DType::kMXFP4, DType::kQ4_0, DType::kQ8_0, DType::kF32, DType::kF16, DType::kBF16}) {
      cases.push_back({isa, dtype});
    }
  }
  return cases;
}
std::string NameOfProduct(const testing::TestParamInfo<ProductCase>& info) {
  return std::string(NameOf(info.param.isa)) + "_" + std::string(NameOf(info.param.dtype));
}

class CpuMatMulTest : public PerIsaTest<ProductCase> {
 protected:
  DType dtype() const { return GetParam().dtype; }
  bool quantized() const { return dtype() == DType::kMXFP4 || dtype() == DType::kQ4_0 || dtype() == DType::kQ8_0; }

  std::vector<float> Product(Ops& ops, const TiledMatrix& weight, std::vector<float> in, int64_t rows,
                             const float* bias = nullptr) {
    GuardedRows out(rows, weight.layout.rows);
    EXPECT_OK(ops.MatMul(TensorOf(in, rows, weight.layout.cols), weight, bias, out.tensor(), false));
    EXPECT_TRUE(out.GuardsIntact());
    return out.Values();
  }
};

struct Shape {
  int64_t rows, cols, tokens;
};
constexpr Shape kShapes[] = {{1, 32, 1},     {16, 32, 2},   {17, 96, 3},    {31, 64, 17},    {33, 160, 9},
                             {100, 256, 64}, {64, 2880, 1}, {48, 2880, 8},  {40, 2880, 129}, {32, 3200, 13},
                             {16, 6400, 10}, {48, 64, 300}, {20, 4096, 270}};

TEST_P(CpuMatMulTest, MatchesReferenceOnTheActivationsItQuantises) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const float parts = dtype() == DType::kQ8_0 ? 128 : 1;
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  if (!quantized()) shapes.insert(shapes.end(), {{33, 48, 1}, {64, 16, 19}, {17, 101, 70}});  // columns that are no whole tile
  for (const auto& [rows, cols, tokens] : shapes) {
    SCOPED_TRACE(testing::Message() << "rows " << rows << " cols " << cols << " tokens " << tokens);
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), rows, cols, 7, 1 / std::sqrt(static_cast<float>(cols)));
    const std::vector<float> in = RandomFloats(tokens * cols, 11), bias = RandomFloats(rows, 13);
    const std::vector<float> got = Product(*ops, weight.matrix, in, tokens, bias.data());
    const std::vector<float> want = Product(
        reference, weight.matrix,
        quantized() ? QuantizedActivations(in, parts, cols, ColumnsOfAScale(GetParam().isa, dtype())) : in, tokens, bias.data());
    EXPECT_TRUE(Close(got, want, 3e-6 * std::sqrt(static_cast<double>(cols)), 1e-6));
  }
}

TEST_P(CpuMatMulTest, IsWithinOnePercentAndNearerWithEightBitWeights) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), 128, 1440, 17);
  const std::vector<float> in = RandomFloats(5 * 1440, 19);
  const std::vector<float> got = Product(*ops, weight.matrix, in, 5), want = Product(reference, weight.matrix, in, 5);
  EXPECT_LE(RelativeRmsError(std::span<const float>(got), std::span<const float>(want)), dtype() == DType::kQ8_0 ? 1e-4
                                                                                         : quantized()           ? 0.01
                                                                                                                 : 1e-6);
}

TEST_P(CpuMatMulTest, GivesARowTheSameBitsAloneAmongOthersAndOnAnyNumberOfThreads) {
  const int64_t rows = 80, cols = 3168, tokens = 150;
  const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), rows, cols, 23);
  const std::vector<float> in = RandomFloats(tokens * cols, 29), bias = RandomFloats(rows, 31);
  const std::vector<float> all = Product(*MakeOps(2), weight.matrix, in, tokens, bias.data());
  EXPECT_TRUE(SameBits(Product(*MakeOps(1), weight.matrix, in, tokens, bias.data()), all));
  EXPECT_TRUE(SameBits(Product(*MakeOps(3), weight.matrix, in, tokens, bias.data()), all));
  const std::unique_ptr<Ops> ops = MakeOps(2);
  for (const int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 18, 23, 64}) {
    SCOPED_TRACE(testing::Message() << count << " rows");
    const int64_t first = count == 1 ? tokens - 1 : 37;
    const std::vector<float> part(in.begin() + first * cols, in.begin() + (first + count) * cols);
    const std::vector<float> want(all.begin() + first * rows, all.begin() + (first + count) * rows);
    EXPECT_TRUE(SameBits(Product(*ops, weight.matrix, part, count, bias.data()), want));
  }
}

TEST_P(CpuMatMulTest, AddsToWhatIsThereWhenAccumulating) {
  const std::unique_ptr<Ops> ops = MakeOps();
  const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), 37, 64, 37);
  for (const int64_t tokens : {1, 20}) {
    std::vector<float> in = RandomFloats(tokens * 64, 41);
    const std::vector<float> product = Product(*ops, weight.matrix, in, tokens);
    GuardedRows out(tokens, 37, 0.5f);
    ASSERT_OK(ops->MatMul(TensorOf(in, tokens, 64), weight.matrix, nullptr, out.tensor(), true));
    EXPECT_TRUE(out.GuardsIntact());
    std::vector<float> want = product;
    for (float& value : want) value = 0.5f + value;
    EXPECT_TRUE(SameBits(out.Values(), want));
  }
}

TEST_P(CpuMatMulTest, ShowsABrokenRowAndLeavesTheOthersAlone) {
  const std::unique_ptr<Ops> ops = MakeOps();
  const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), 40, 64, 43);
  for (const float broken : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const int64_t tokens : {3, 20}) {
      std::vector<float> in = RandomFloats(tokens * 64, 47);
      const std::vector<float> sound = Product(*ops, weight.matrix, in, tokens);
      in[64 + 5] = broken;
      std::vector<float> got = Product(*ops, weight.matrix, in, tokens);
      for (int64_t i = 40; i < 80; ++i) EXPECT_FALSE(std::isfinite(got[i])) << i;
      std::copy(sound.begin() + 40, sound.begin() + 80, got.begin() + 40);
      EXPECT_TRUE(SameBits(got, sound));
    }
  }
}

TEST_P(CpuMatMulTest, TakesActivationsOfAnySize) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), 16, 96, 53);
  for (const float size : {0.0f, 1e-12f, 1e-6f, 1e6f, 1e12f}) {
    SCOPED_TRACE(size);
    const std::vector<float> in = RandomFloats(2 * 96, 59, size);
    const std::vector<float> want = Product(reference, weight.matrix, in, 2);
    EXPECT_TRUE(Close(Product(*ops, weight.matrix, in, 2), want, 0.3 * size, 0));
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuMatMulTest, testing::ValuesIn(EachIsaAndType()), NameOfProduct);

// ------------------------------------------------------------------------------------------------------------ experts

struct ExpertCase {
  CpuIsa isa;
  DType gate, up, down;
  bool has_bias;
};
std::vector<ExpertCase> EachIsaAndRecord() {
  std::vector<ExpertCase> cases;
  for (const CpuIsa isa : kTestedIsas) {
    for (const DType dtype : {DType::kMXFP4, DType::kQ8_0, DType::kQ4_0, DType::kF32}) {
      cases.push_back({isa, dtype, dtype, dtype, true});
    }
    cases.push_back({isa, DType::kQ4_0, DType::kF16, DType::kQ8_0, false});
    cases.push_back({isa, DType::kBF16, DType::kMXFP4, DType::kF32, true});
  }
  return cases;
}
std::string NameOfExpert(const testing::TestParamInfo<ExpertCase>& info) {
  const auto& [isa, gate, up, down, has_bias] = info.param;
  return std::string(NameOf(isa)) + "_" + std::string(NameOf(gate)) + "_" + std::string(NameOf(up)) + "_" +
         std::string(NameOf(down)) + (has_bias ? "_bias" : "");
}

// Tokens whose choices are (token * 7 + rank * 5) mod experts: uneven groups, some empty.
struct Routed {
  std::vector<int32_t> offsets, rows, outs;
  ExpertGroups groups;
};
Routed RouteEvenly(Ops& ops, int64_t tokens, int64_t top_k, int64_t num_experts) {
  std::vector<int32_t> experts;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t rank = 0; rank < top_k; ++rank) experts.push_back(static_cast<int32_t>((token * token + rank) % num_experts));
  }
  Routed routed;
  routed.offsets.resize(num_experts + 1);
  routed.rows.resize(tokens * top_k), routed.outs.resize(tokens * top_k);
  EXPECT_OK(ops.GroupByExpert(experts.data(), tokens, top_k, num_experts, routed.offsets.data(), routed.rows.data(),
                              routed.outs.data()));
  routed.groups = {num_experts, tokens * top_k, routed.offsets.data(), routed.rows.data(), routed.outs.data()};
  return routed;
}

class CpuExpertMlpTest : public PerIsaTest<ExpertCase> {
 protected:
  static constexpr int64_t kTopK = 2, kExperts = 5;

  void SetUp() override {
    PerIsaTest::SetUp();
    if (IsSkipped()) return;
    const auto& [isa, gate, up, down, has_bias] = GetParam();
    ASSERT_OK_AND_ASSIGN(layout_, ExpertLayout::Create(gate, up, down, kEmbd, kFf, has_bias));
    for (uint64_t expert = 0; expert < kExperts; ++expert) records_.push_back(RandomExpertRecord(layout_, 61 + expert));
  }

  // Contributions [tokens * kTopK, kEmbd] of all experts.
  std::vector<float> Contributions(Ops& ops, const std::vector<float>& in, int64_t tokens) {
    GuardedRows out(tokens * kTopK, kEmbd);
    std::vector<float> rows = in;
    const Routed routed = RouteEvenly(ops, tokens, kTopK, kExperts);
    std::vector<ExpertUse> uses;
    for (int32_t group = 0; group < kExperts; ++group) {
      const int64_t count = routed.offsets[group + 1] - routed.offsets[group];
      if (count > 0) uses.push_back({records_[group].data(), group, count});
    }
    EXPECT_OK(ops.ExpertMlp(layout_, uses, routed.groups, {}, TensorOf(rows, tokens, kEmbd), out.tensor()));
    EXPECT_TRUE(out.GuardsIntact());
    return out.Values();
  }

  static constexpr int64_t kEmbd = 208 + 16 * 7, kFf = 96;  // 320: an even number of blocks, rows 20 tiles
  ExpertLayout layout_;
  std::vector<AlignedBytes> records_;
};

TEST_P(CpuExpertMlpTest, MatchesReference) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const auto exact = [](DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; };
  const bool all_exact = exact(GetParam().gate) && exact(GetParam().up) && exact(GetParam().down);
  for (const int64_t tokens : {1, 2, 3, 17, 64, 700}) {
    SCOPED_TRACE(tokens);
    const std::vector<float> in = RandomFloats(tokens * kEmbd, 67);
    const std::vector<float> got = Contributions(*ops, in, tokens), want = Contributions(reference, in, tokens);
    // Two quantisations of activations, 0.5 % each on normal numbers.
    EXPECT_LE(RelativeRmsError(std::span<const float>(got), std::span<const float>(want)), all_exact ? 2e-6 : 0.015);
  }
}

TEST_P(CpuExpertMlpTest, TakesExpertsNarrowerThanATile) {
  const bool whole_blocks = GetParam().down != DType::kF32;
  if (whole_blocks) GTEST_SKIP() << "rows of the down matrix are whole blocks";
  for (const int64_t n_ff : {16, 80}) {
    SCOPED_TRACE(n_ff);
    ASSERT_OK_AND_ASSIGN(layout_,
                         ExpertLayout::Create(GetParam().gate, GetParam().up, GetParam().down, kEmbd, n_ff, GetParam().has_bias));
    records_.clear();
    for (uint64_t expert = 0; expert < kExperts; ++expert) records_.push_back(RandomExpertRecord(layout_, 61 + expert));
    ReferenceOps reference;
    const std::unique_ptr<Ops> ops = MakeOps();
    const std::vector<float> in = RandomFloats(70 * kEmbd, 67), got = Contributions(*ops, in, 70);
    const std::vector<float> want = Contributions(reference, in, 70);
    const bool exact = GetParam().gate == DType::kF32;
    EXPECT_LE(RelativeRmsError(std::span<const float>(got), std::span<const float>(want)), exact ? 2e-6 : 0.015);
    const std::vector<float> first(in.begin(), in.begin() + kEmbd);
    EXPECT_TRUE(SameBits(Contributions(*ops, first, 1), {got.begin(), got.begin() + kTopK * kEmbd}));
  }
}

TEST_P(CpuExpertMlpTest, ATokensBitsDependOnNeitherOthersNorThreads) {
  const int64_t tokens = 300;
  const std::vector<float> in = RandomFloats(tokens * kEmbd, 71);
  const std::vector<float> all = Contributions(*MakeOps(2), in, tokens);
  EXPECT_TRUE(SameBits(Contributions(*MakeOps(1), in, tokens), all));
  EXPECT_TRUE(SameBits(Contributions(*MakeOps(3), in, tokens), all));
  const std::unique_ptr<Ops> ops = MakeOps(2);
  for (const int64_t count : {1, 2, 9, 40}) {
    // The first tokens choose the same experts as among all.
    const std::vector<float> part(in.begin(), in.begin() + count * kEmbd);
    const std::vector<float> want(all.begin(), all.begin() + count * kTopK * kEmbd);
    EXPECT_TRUE(SameBits(Contributions(*ops, part, count), want)) << count << " tokens";
  }
}

TEST_P(CpuExpertMlpTest, TouchesOnlyTheRowsOfItsUses) {
  const std::unique_ptr<Ops> ops = MakeOps();
  std::vector<float> in = RandomFloats(6 * kEmbd, 73);
  const Routed routed = RouteEvenly(*ops, 6, kTopK, kExperts);
  GuardedRows out(6 * kTopK, kEmbd, 42);
  const int32_t group = 1;
  const ExpertUse use = {records_[group].data(), group, routed.offsets[group + 1] - routed.offsets[group]};
  ASSERT_GT(use.num_rows, 0);
  ASSERT_OK(ops->ExpertMlp(layout_, std::span(&use, 1), routed.groups, {}, TensorOf(in, 6, kEmbd), out.tensor()));
  for (int32_t row = 0; row < 6 * kTopK; ++row) {
    const auto begin = routed.outs.begin() + routed.offsets[group], end = begin + use.num_rows;
    const bool touched = std::find(begin, end, row) != end;
    EXPECT_EQ(out.Row(row)[0] != 42 || out.Row(row)[kEmbd - 1] != 42, touched) << row;
  }
}

TEST_P(CpuExpertMlpTest, ShowsABrokenTokenAndLeavesTheOthersAlone) {
  const std::unique_ptr<Ops> ops = MakeOps();
  std::vector<float> in = RandomFloats(4 * kEmbd, 79);
  const std::vector<float> sound = Contributions(*ops, in, 4);
  in[2 * kEmbd + 3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> got = Contributions(*ops, in, 4);
  const int64_t first = 2 * kTopK * kEmbd, end = 3 * kTopK * kEmbd;
  for (int64_t i = first; i < end; ++i) ASSERT_TRUE(std::isnan(got[i])) << i;
  std::copy(sound.begin() + first, sound.begin() + end, got.begin() + first);
  EXPECT_TRUE(SameBits(got, sound));
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuExpertMlpTest, testing::ValuesIn(EachIsaAndRecord()), NameOfExpert);

}  // namespace
}  // namespace ferry
