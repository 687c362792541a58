#include "coordinator/planning/probe_disturbance.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr char kStat[] =
    "cpu  100 20 30 1000 50 6 7 8 0 0\n"
    "cpu0 50 10 15 500 25 3 4 4 0 0\n"
    "cpu1 50 10 15 500 25 3 3 4 0 0\n"
    "intr 12345\n";

TEST(ProbeDisturbance, CountsWhatIsNeitherIdleNorWaiting) {
  ASSERT_OK_AND_ASSIGN(const ProcessorTime time, ParseProcessorTime(kStat, 0.01));
  EXPECT_EQ(time.cores, 2);
  EXPECT_NEAR(time.busy, 1.71, 1e-9);
  EXPECT_THAT(ParseProcessorTime("", 0.01), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(ReadProcessorTime());
}

TEST(ProbeDisturbance, OwnWorkIsNoDisturbance) {
  EXPECT_EQ(OthersAtWork({.busy = 10, .own = 1, .cores = 2}, {.busy = 12, .own = 3, .cores = 2}, 1), "");
}

TEST(ProbeDisturbance, WorkOfOthersIsSaid) {
  EXPECT_THAT(OthersAtWork({.busy = 10, .own = 1, .cores = 2}, {.busy = 12, .own = 2, .cores = 2}, 1),
              HasSubstr("other programs used 1.0 of 2 cores"));
  EXPECT_EQ(OthersAtWork({.busy = 10, .own = 1, .cores = 64}, {.busy = 12, .own = 2, .cores = 64}, 1), "") << "a small share";
  EXPECT_NE(OthersAtWork({.busy = 10, .own = 1, .cores = 64}, {.busy = 15, .own = 1, .cores = 64}, 1), "");
}

TEST(ProbeDisturbance, RepeatsThatDisagreeAreSaid) {
  const ExpertRates quiet = {.read_bytes_per_second = 37e9, .flops_per_second = 900e9};
  EXPECT_EQ(Disagreement(quiet, {.read_bytes_per_second = 33e9, .flops_per_second = 950e9}), "");
  EXPECT_THAT(Disagreement(quiet, {.read_bytes_per_second = 5e9, .flops_per_second = 900e9}),
              HasSubstr("37.0 and then at 5.0 GB/s"));
  EXPECT_THAT(Disagreement({.read_bytes_per_second = 37e9, .flops_per_second = 90e9}, quiet), HasSubstr("90 and then at 900"));
}

TEST(ProbeDisturbance, StepsThatContradictAMeasurementAreSaid) {
  v1::GetServerInfoResponse info;
  info.add_workers();
  EXPECT_EQ(Contradiction(info), "") << "no steps";
  info.mutable_host_experts()->set_slowdown_of_large_steps(0.6);
  info.add_workers()->set_link_slowdown(1.9);
  EXPECT_EQ(Contradiction(info), "");
  info.mutable_workers(1)->set_worker_id(1);
  info.mutable_workers(1)->set_link_slowdown(2.1);
  EXPECT_THAT(Contradiction(info), HasSubstr("copies to worker 1 took 2.10 times as long"));
  info.mutable_host_experts()->set_slowdown_of_large_steps(0.4);
  EXPECT_THAT(Contradiction(info), HasSubstr("experts on the host took 0.40 times as long"));
}

}  // namespace
}  // namespace ferry
