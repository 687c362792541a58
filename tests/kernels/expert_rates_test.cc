#include "kernels/expert_rates.h"

#include "tests/testing/random_tensors.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

constexpr ExpertRatesOptions kShort = {
    .time = absl::Milliseconds(5), .read_bytes = 1 << 20, .many_rows = 8, .many_row_experts = 2};

std::unique_ptr<Ops> MakeOps() { return CreateOps({.kind = "cpu", .num_threads = 1, .pin_threads = false}).value(); }
ExpertLayout SmallExpert() {
  return ExpertLayout::Create(DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, 256, 192, /*has_bias=*/true).value();
}

TEST(ExpertRates, AreThoseOfAMachine) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ASSERT_OK_AND_ASSIGN(const ExpertRates rates, MeasureExpertsOn(*ops, SmallExpert(), kShort));
  EXPECT_GT(rates.read_bytes_per_second, 1e6);
  EXPECT_LT(rates.read_bytes_per_second, 1e13);
  EXPECT_GT(rates.flops_per_second, 1e6);
  EXPECT_LT(rates.flops_per_second, 1e14);
}

TEST(ExpertRates, HaveACurveWhenAsked) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ExpertRatesOptions options = kShort;
  ASSERT_OK_AND_ASSIGN(const ExpertRates without, MeasureExpertsOn(*ops, SmallExpert(), options));
  EXPECT_EQ(without.flops_at_rows, ProductCurve{});
  options.curve = true;
  ASSERT_OK_AND_ASSIGN(const ExpertRates with, MeasureExpertsOn(*ops, SmallExpert(), options));
  for (const double flops : with.flops_at_rows) {
    EXPECT_GT(flops, 1e6);
    EXPECT_LT(flops, 1e14);
  }
}

TEST(ExpertRates, NeedRecords) {
  const std::unique_ptr<Ops> ops = MakeOps();
  EXPECT_THAT(MeasureExperts(*ops, SmallExpert(), {}, kShort), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ExpertRates, OneRecordIsEnough) {
  const std::unique_ptr<Ops> ops = MakeOps();
  const ExpertLayout layout = SmallExpert();
  const AlignedBytes record(layout.bytes);
  const std::byte* const records[] = {record.data()};
  EXPECT_OK(MeasureExperts(*ops, layout, records, kShort));
}

TEST(OperationTime, IsThatOfAMachine) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ASSERT_OK_AND_ASSIGN(const double seconds, MeasureOperation(*ops, 256));
  EXPECT_GT(seconds, 0);
  EXPECT_LT(seconds, 1e-3);
}

TEST(CopyRate, IsThatOfAMachine) {
  const std::unique_ptr<Ops> ops = MakeOps();
  ASSERT_OK_AND_ASSIGN(const double rate, MeasureCopies(*ops, 1 << 20, absl::Milliseconds(5)));
  EXPECT_GT(rate, 1e6);
  EXPECT_LT(rate, 1e13);
}

}  // namespace
}  // namespace ferry
