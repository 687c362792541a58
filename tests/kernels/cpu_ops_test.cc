// The rest of the CPU backend: the choice at run time, norms, routing, logits.

#include <limits>
#include <numeric>

#include "tests/kernels/cpu_backends.h"
#include "tests/kernels/plain_params.h"

namespace ferry {
namespace {

using testing::HasSubstr;

TEST(CpuOps, RefusesAnUnknownInstructionSet) {
  BackendOptions options;
  options.isa = "sse9";
  EXPECT_THAT(CreateCpuOps(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sse9")));
}

TEST(CpuOps, RefusesANegativeNumberOfThreads) {
  BackendOptions options;
  options.num_threads = -1;
  EXPECT_THAT(CreateCpuOps(options), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_threads")));
}

TEST(CpuOps, RefusesAnInstructionSetThatTheMachineLacks) {
  bool lacks_one = false;
  for (const CpuIsa isa : kAllIsas) {
    if (MachineHas(isa)) continue;
    lacks_one = true;
    BackendOptions options;
    options.isa = std::string(NameOf(isa));
    EXPECT_THAT(CreateCpuOps(options), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("it has")));
  }
  if (!lacks_one) GTEST_SKIP() << "this machine has every instruction set that Ferry knows";
}

TEST(CpuOps, TakesTheBestInstructionSetByItself) {
  ASSERT_OK_AND_ASSIGN(const CpuKernels* best, SelectKernels("auto"));
  const CpuKernels* want = PortableKernels();
  if (MachineHas(CpuIsa::kAvx2)) want = Avx2Kernels();
  if (MachineHas(CpuIsa::kAvx512)) want = Avx512Kernels();
  if (MachineHas(CpuIsa::kAmx)) want = AmxKernels();
  if (MachineHas(CpuIsa::kNeon)) want = NeonKernels();
  if (MachineHas(CpuIsa::kDotprod)) want = DotprodKernels();
  if (MachineHas(CpuIsa::kI8mm)) want = I8mmKernels();
  EXPECT_EQ(best, want);
}

class CpuOpsTest : public PerIsaTest<IsaCase> {};

TEST_P(CpuOpsTest, NormalisesRowsAsTheReferenceDoes) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  for (const int64_t cols : {1, 15, 64, 2880}) {
    for (const int64_t rows : {1, 30}) {
      std::vector<float> x = RandomFloats(rows * cols, 91, 3);
      const std::vector<float> weight = RandomFloats(cols, 93);
      GuardedRows got(rows, cols), want(rows, cols);
      ASSERT_OK(ops->RmsNorm(TensorOf(x, rows, cols), weight.data(), 1e-5, got.tensor()));
      ASSERT_OK(reference.RmsNorm(TensorOf(x, rows, cols), weight.data(), 1e-5, want.tensor()));
      EXPECT_TRUE(got.GuardsIntact());
      EXPECT_TRUE(Close(got.Values(), want.Values(), 1e-7, 1e-6)) << rows << " x " << cols;
      GuardedRows last(1, cols);
      ASSERT_OK(ops->RmsNorm(TensorOf(x, rows, cols).Rows(rows - 1, 1), weight.data(), 1e-5, last.tensor()));
      const std::vector<float> all = got.Values();
      EXPECT_TRUE(SameBits(last.Values(), std::vector<float>(all.end() - cols, all.end())));
    }
  }
}

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};
Routing RouteOf(Ops& ops, std::vector<float> in, int64_t rows, const std::vector<float>& weight, const float* bias,
                int64_t num_experts, int64_t top_k) {
  Routing routing{std::vector<int32_t>(rows * top_k), std::vector<float>(rows * top_k)};
  EXPECT_OK(ops.Route(TensorOf(in, rows, static_cast<int64_t>(in.size()) / rows), {.weight = weight.data(), .bias = bias},
                      PlainRouter(num_experts, top_k), routing.experts.data(), routing.weights.data()));
  return routing;
}

TEST_P(CpuOpsTest, RoutesAsTheReferenceDoesAndEveryRowByItself) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ReferenceOps reference;
  struct Case {
    int64_t experts, top_k, cols;
  };
  for (const auto& [experts, top_k, cols] : {Case{32, 4, 2880}, {128, 4, 320}, {7, 7, 32}, {60, 1, 64}}) {
    SCOPED_TRACE(experts);
    const std::vector<float> weight = RandomFloats(experts * cols, 95, 0.1f), bias = RandomFloats(experts, 97);
    const std::vector<float> in = RandomFloats(21 * cols, 99);
    const Routing got = RouteOf(*ops, in, 21, weight, bias.data(), experts, top_k);
    const Routing want = RouteOf(reference, in, 21, weight, bias.data(), experts, top_k);
    EXPECT_EQ(got.experts, want.experts);
    EXPECT_TRUE(Close(got.weights, want.weights, 2e-6, 1e-5));
    for (const int64_t row : {0, 20}) {
      const std::vector<float> alone(in.begin() + row * cols, in.begin() + (row + 1) * cols);
      const Routing one = RouteOf(*MakeOps(1), alone, 1, weight, bias.data(), experts, top_k);
      EXPECT_TRUE(
          SameBits(one.weights, std::vector<float>(got.weights.begin() + row * top_k, got.weights.begin() + (row + 1) * top_k)));
    }
  }
}

TEST_P(CpuOpsTest, BreaksTiesOfTheRouterByExpertId) {
  const std::unique_ptr<Ops> ops = MakeOps();
  // Three tokens by hand: the router's rows are zero but for a bias, then two experts that tie above the others.
  std::vector<float> weight(4 * 32, 0), in(3 * 32, 0);
  weight[1 * 32] = weight[3 * 32] = 1;
  in[0] = 1, in[32] = -1;
  const Routing got = RouteOf(*ops, in, 3, weight, nullptr, 4, 2);
  EXPECT_THAT(got.experts, testing::ElementsAre(1, 3, 0, 2, 0, 1));
  for (const float w : got.weights) EXPECT_EQ(w, 0.5f);
}

TEST_P(CpuOpsTest, ChoosesDistinctExpertsWhateverTheLogitsAre) {
  const std::unique_ptr<Ops> ops = MakeOps();
  const std::vector<float> weight = RandomFloats(8 * 32, 101);
  std::vector<float> in(32, std::numeric_limits<float>::quiet_NaN());
  const Routing got = RouteOf(*ops, in, 1, weight, nullptr, 8, 3);
  EXPECT_THAT(got.experts, testing::ElementsAre(0, 1, 2));
}

TEST_P(CpuOpsTest, SumsTheExponentialsOfAWholeVocabulary) {
  const std::unique_ptr<Ops> ops = MakeOps();
  for (const int64_t vocab : {1, 17, 4096, 201088}) {
    std::vector<float> logits = RandomFloats(vocab, 103, 4);
    const LogitsRequest request{1, 0};
    ASSERT_OK_AND_ASSIGN(const std::vector<LogitsResult> got,
                         ops->ReadLogits(TensorOf(logits, 1, vocab), std::span(&request, 1)));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    EXPECT_NEAR(got[0].log_sum_exp, std::log(sum), 2e-6 * std::abs(std::log(sum)) + 1e-6) << vocab;
  }
}

TEST_P(CpuOpsTest, DoesNothingWithoutRows) {
  const std::unique_ptr<Ops> ops = MakeOps();
  const OwnedTiledMatrix weight = RandomTiledMatrix(DType::kQ8_0, 32, 32, 105);
  std::vector<float> in(32), out(32, 5);
  EXPECT_OK(
      ops->MatMul(Tensor(in.data(), DType::kF32, 0, 32), weight.matrix, nullptr, Tensor(out.data(), DType::kF32, 0, 32), false));
  EXPECT_EQ(out[0], 5);
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuOpsTest, testing::ValuesIn(EachIsa()), NameOfCase);

}  // namespace
}  // namespace ferry
