// Products of the CPU backend with weights of every number format, on every instruction set.

#include "common/model/formats/formats.h"
#include "tests/kernels/cpu_backends.h"

namespace ferry {
namespace {

struct FormatCase {
  CpuIsa isa;
  DType dtype;
};
std::vector<FormatCase> EachIsaAndFormat() {
  std::vector<FormatCase> cases;
  for (const CpuIsa isa : kTestedIsas) {
    ForEachFormat([&]<DType kType>() {
      if (Format<kType>::kInteger) cases.push_back({isa, kType});
    });
  }
  return cases;
}

class CpuFormatTest : public PerIsaTest<FormatCase> {
 protected:
  DType dtype() const { return GetParam().dtype; }

  std::vector<float> Product(Ops& ops, const TiledMatrix& weight, std::vector<float> in, int64_t rows) {
    GuardedRows out(rows, weight.layout.rows);
    EXPECT_OK(ops.MatMul(TensorOf(in, rows, weight.layout.cols), weight, nullptr, out.tensor(), false));
    EXPECT_TRUE(out.GuardsIntact());
    return out.Values();
  }
};

struct Shape {
  int64_t rows, cols, tokens;
};

TEST_P(CpuFormatTest, MatchesReferenceOnTheActivationsItQuantises) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  const float parts = dtype() == DType::kQ8_0 ? 128 : 1;
  // IQ6_K's levels are rounded to whole numbers.
  const double tolerance = dtype() == DType::kIQ6_K ? 0.03 : 5e-5;
  for (const auto& [rows, cols, tokens] : {Shape{1, 256, 1}, {17, 768, 3}, {33, 512, 9}, {37, 3328, 1}, {20, 3328, 14}}) {
    SCOPED_TRACE(testing::Message() << "rows " << rows << " cols " << cols << " tokens " << tokens);
    const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), rows, cols, 7, 1 / std::sqrt(static_cast<float>(cols)));
    const std::vector<float> in = RandomFloats(tokens * cols, 11);
    const std::vector<float> got = Product(*ops, weight.matrix, in, tokens);
    const std::vector<float> want = Product(
        reference, weight.matrix, QuantizedActivations(in, parts, cols, ColumnsOfAScale(GetParam().isa, dtype())), tokens);
    EXPECT_TRUE(Close(got, want, tolerance, 1e-5));
  }
}

TEST_P(CpuFormatTest, GivesARowTheSameBitsAloneAndAmongOthers) {
  constexpr int64_t kRows = 40, kCols = 3328, kTokens = 14;
  const std::unique_ptr<Ops> ops = MakeOps();
  const OwnedTiledMatrix weight = RandomTiledMatrix(dtype(), kRows, kCols, 23);
  const std::vector<float> in = RandomFloats(kTokens * kCols, 29);
  const std::vector<float> all = Product(*ops, weight.matrix, in, kTokens);
  for (const int64_t count : {1, 2, 3, 5, 6, 8}) {
    const std::vector<float> part(in.begin() + 5 * kCols, in.begin() + (5 + count) * kCols);
    const std::vector<float> want(all.begin() + 5 * kRows, all.begin() + (5 + count) * kRows);
    EXPECT_TRUE(SameBits(Product(*ops, weight.matrix, part, count), want)) << count << " rows";
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuFormatTest, testing::ValuesIn(EachIsaAndFormat()), [](const auto& info) {
  return std::string(NameOf(info.param.isa)) + "_" + std::string(NameOf(info.param.dtype));
});

// Both fuse multiply-adds and add in one order, however they look codes up.
TEST(CpuFormats, Avx2AndAvx512GiveTheSameBits) {
  constexpr int64_t kRows = 37, kCols = 1024, kTokens = 7;
  if (!SelectKernels("avx2").ok() || !SelectKernels("avx512").ok()) GTEST_SKIP() << "no AVX-512 or AVX2";
  BackendOptions options;
  options.num_threads = 1;
  options.pin_threads = false;
  options.isa = "avx2";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Ops> avx2, CreateCpuOps(options));
  options.isa = "avx512";
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Ops> avx512, CreateCpuOps(options));
  std::vector<float> in = RandomFloats(kTokens * kCols, 71);
  ForEachFormat([&]<DType kType>() {
    if (!Format<kType>::kInteger) return;
    SCOPED_TRACE(NameOf(kType));
    const OwnedTiledMatrix weight = RandomTiledMatrix(kType, kRows, kCols, 73);
    for (const int64_t tokens : {int64_t{1}, kTokens}) {
      std::vector<float> got(tokens * kRows), want(tokens * kRows);
      const Tensor rows = TensorOf(in, kTokens, kCols).Rows(0, tokens);
      ASSERT_OK(avx512->MatMul(rows, weight.matrix, nullptr, TensorOf(got, tokens, kRows), false));
      ASSERT_OK(avx2->MatMul(rows, weight.matrix, nullptr, TensorOf(want, tokens, kRows), false));
      EXPECT_TRUE(SameBits(got, want)) << tokens << " rows";
    }
  });
}

// Gate, up and down of one expert may be of three types.
TEST(CpuFormats, ExpertsMixTypes) {
  constexpr int64_t kEmbd = 512, kFf = 256, kTokens = 7;
  for (const CpuIsa isa : kTestedIsas) {
    if (!SelectKernels(NameOf(isa)).ok()) continue;
    SCOPED_TRACE(NameOf(isa));
    BackendOptions options;
    options.isa = std::string(NameOf(isa));
    options.num_threads = 2;
    options.pin_threads = false;
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Ops> ops, CreateCpuOps(options));
    ReferenceOps reference;
    ASSERT_OK_AND_ASSIGN(const ExpertLayout layout,
                         ExpertLayout::Create(DType::kQ4_K, DType::kQ3_K, DType::kIQ4_KS, kEmbd, kFf, /*has_bias=*/false));
    const AlignedBytes record = RandomExpertRecord(layout, 61);
    std::vector<float> in = RandomFloats(kTokens * kEmbd, 67);
    std::vector<int32_t> rows(kTokens), offsets = {0, static_cast<int32_t>(kTokens)};
    for (int32_t i = 0; i < kTokens; ++i) rows[i] = i;
    const ExpertGroups groups = {1, kTokens, offsets.data(), rows.data(), rows.data()};
    const ExpertUse use = {record.data(), 0, kTokens};
    std::vector<float> got(kTokens * kEmbd), want(kTokens * kEmbd);
    ASSERT_OK(ops->ExpertMlp(layout, {&use, 1}, groups, {}, TensorOf(in, kTokens, kEmbd), TensorOf(got, kTokens, kEmbd)));
    ASSERT_OK(reference.ExpertMlp(layout, {&use, 1}, groups, {}, TensorOf(in, kTokens, kEmbd), TensorOf(want, kTokens, kEmbd)));
    EXPECT_LE(RelativeRmsError(std::span<const float>(got), std::span<const float>(want)), 0.015);
  }
}

}  // namespace
}  // namespace ferry
