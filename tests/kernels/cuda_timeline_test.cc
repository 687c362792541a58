#include <gmock/gmock.h>

#include <map>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/kernels/cuda_rig.h"
#include "tests/testing/soon.h"

namespace ferry {
namespace {

class CudaTimelineTest : public CudaTest {};

TEST_F(CudaTimelineTest, ComputeWaitsAsLongAsTheCopyRuns) {
  const std::vector<std::byte> source(64 << 20, std::byte{9});  // milliseconds
  ASSERT_OK(ops_->PinHost(source, /*read_only=*/false));
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer target, ops_->Allocate(64 << 20));
  const DeviceRowsBuffer x(ops_, DType::kF32, RandomFloats(1024, 1), 1, 1024), out(ops_, act(), 1, 1024);
  const GuardedBytes weight(ops_, BytesOf(std::vector<float>(1024, 1.0f)));

  ASSERT_OK(ops_->StartTimeline(Soon()));
  const absl::Time begin = absl::Now();
  ASSERT_OK_AND_ASSIGN(const Event copied, ops_->CopyAsync(target.data(), source, {}));
  ASSERT_OK(ops_->ComputeAfter(copied));
  ASSERT_OK(ops_->RmsNorm(x.tensor(), weight.as<float>(), 1e-5, out.tensor()));
  ASSERT_OK(ops_->Synchronize(Soon()));
  const absl::Time end = absl::Now();
  ASSERT_OK_AND_ASSIGN(const std::vector<TimelineSpan> spans, ops_->TakeTimeline());
  ops_->UnpinHost(source);

  std::map<std::string, TimelineSpan> by_name;
  for (const TimelineSpan& span : spans) {
    by_name[span.name] = span;
    EXPECT_LE(span.begin, span.end) << span.name;
    EXPECT_GE(span.begin, begin - absl::Milliseconds(1)) << span.name << ": the device's clock is tied to the host's";
    EXPECT_LE(span.end, end + absl::Milliseconds(1)) << span.name;
  }
  ASSERT_EQ(by_name.size(), 3u);
  const TimelineSpan& copy = by_name.at("CopyAsync");
  EXPECT_EQ(copy.queue, TimelineSpan::Queue::kCopy);
  EXPECT_GT(copy.end - copy.begin, absl::Microseconds(200)) << "64 MiB at less than 335 GB/s";
  EXPECT_GE(by_name.at(kWaitSpan).end, copy.end - absl::Microseconds(5));
  EXPECT_GE(by_name.at("RmsNorm").begin, copy.end - absl::Microseconds(5));
}

TEST_F(CudaTimelineTest, WhatStillRunsIsLeftToTheNextTime) {
  const std::vector<std::byte> source(256 << 20, std::byte{9});
  ASSERT_OK(ops_->PinHost(source, /*read_only=*/false));
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer target, ops_->Allocate(256 << 20));
  ASSERT_OK(ops_->StartTimeline(Soon()));
  ASSERT_OK(ops_->CopyAsync(target.data(), source, {}).status());
  ASSERT_OK_AND_ASSIGN(const std::vector<TimelineSpan> now, ops_->TakeTimeline());
  EXPECT_TRUE(now.empty());
  ASSERT_OK(ops_->Synchronize(Soon()));
  ASSERT_OK_AND_ASSIGN(const std::vector<TimelineSpan> later, ops_->TakeTimeline());
  EXPECT_EQ(later.size(), 1u);
  ops_->UnpinHost(source);
}

}  // namespace
}  // namespace ferry
