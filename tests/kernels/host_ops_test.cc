#include "kernels/host_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "kernels/reference/reference_ops.h"
#include "tests/testing/close.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"

// What every host backend does alike, through the one that needs nothing else.

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

class HostOpsTest : public testing::Test {
 protected:
  ReferenceOps ops_;
};

Tensor TensorOf(std::vector<float>& values, int64_t rows, int64_t cols) { return {values.data(), DType::kF32, rows, cols}; }

// ----------------------------------------------------------------------------------------------------- memory and
// queues

TEST_F(HostOpsTest, AllocatesAlignedMemory) {
  for (const int64_t bytes : {int64_t{1}, int64_t{1000}, int64_t{5} << 20}) {
    ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(bytes));
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 0u);
    buffer.data()[bytes - 1] = std::byte{1};
  }
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer none, ops_.Allocate(0));
  EXPECT_EQ(none.data(), nullptr);
}

TEST_F(HostOpsTest, RefusesToAllocateMoreThanThereIs) {
  EXPECT_THAT(ops_.Allocate(int64_t{1} << 50),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("1125899906842624 bytes is more than the")));
  EXPECT_THAT(ops_.Allocate(std::numeric_limits<int64_t>::max()), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(ops_.Allocate(-1), StatusIs(kInvalid));
}

TEST_F(HostOpsTest, TellsItsMemory) {
  ASSERT_OK_AND_ASSIGN(const DeviceMemoryInfo info, ops_.MemoryInfo());
  EXPECT_GT(info.free_bytes, 0);
  EXPECT_LE(info.free_bytes, info.total_bytes);
}

TEST_F(HostOpsTest, UploadsAndDownloads) {
  const std::vector<float> values = RandomFloats(100, 1);
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(400));
  ASSERT_OK(ops_.Upload(buffer.data(), std::as_bytes(std::span(values))));
  std::vector<float> back(100);
  ASSERT_OK(ops_.Download(std::as_writable_bytes(std::span(back)), buffer.data()));
  EXPECT_EQ(back, values);
}

TEST_F(HostOpsTest, UploadsAndDownloadsBehindWhatIsQueued) {
  const std::vector<float> values = RandomFloats(100, 1);
  std::vector<float> back(100);
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(400));
  ASSERT_OK(ops_.UploadAsync(buffer.data(), std::as_bytes(std::span(values))));
  ASSERT_OK(ops_.DownloadAsync(std::as_writable_bytes(std::span(back)), buffer.data()));
  ASSERT_OK_AND_ASSIGN(const Event done, ops_.MarkCompute());
  ASSERT_OK(ops_.Wait(done, Soon()));
  EXPECT_EQ(back, values);
}

TEST_F(HostOpsTest, CopiesManyPieces) {
  std::vector<float> values = RandomFloats(100, 1), back(100);
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(400));
  std::vector<HostCopy> up, down;
  for (int i = 0; i < 100; ++i) {
    std::byte* const place = buffer.data() + 4 * (i * 7 % 100);
    up.push_back({std::as_writable_bytes(std::span(values)).subspan(4 * i, 4), place});
    down.push_back({std::as_writable_bytes(std::span(back)).subspan(4 * i, 4), place});
  }
  ASSERT_OK(ops_.UploadAllAsync(up));
  ASSERT_OK(ops_.DownloadAllAsync(down));
  EXPECT_EQ(back, values);
}

TEST_F(HostOpsTest, RecordsWhatItsQueuesDidAndWhen) {
  std::vector<float> x = RandomFloats(64, 1), weight(64, 1.0f), out(64);
  const std::vector<std::byte> source(8 << 20, std::byte{9});
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(8 << 20));
  ASSERT_OK(ops_.RmsNorm(TensorOf(x, 1, 64), weight.data(), 1e-5, TensorOf(out, 1, 64)));  // before it starts
  const absl::Time before = absl::Now();
  ASSERT_OK(ops_.StartTimeline(Soon()));
  ASSERT_OK_AND_ASSIGN(const Event copied, ops_.CopyAsync(buffer.data(), source, {}));
  ASSERT_OK(ops_.ComputeAfter(copied));
  ASSERT_OK(ops_.RmsNorm(TensorOf(x, 1, 64), weight.data(), 1e-5, TensorOf(out, 1, 64)));
  ASSERT_OK_AND_ASSIGN(const std::vector<TimelineSpan> spans, ops_.TakeTimeline());
  std::map<std::string, TimelineSpan> by_name;
  for (const TimelineSpan& span : spans) {
    EXPECT_TRUE(by_name.emplace(span.name, span).second) << span.name << " ran once";
    EXPECT_GE(span.begin, before);
    EXPECT_LE(span.begin, span.end);
    EXPECT_LE(span.end, absl::Now());
  }
  EXPECT_EQ(by_name.at("CopyAsync").queue, TimelineSpan::Queue::kCopy);
  EXPECT_GE(by_name.at("RmsNorm").begin, by_name.at("CopyAsync").end) << "it was to run after the copy";
  ASSERT_OK(ops_.RmsNorm(TensorOf(x, 1, 64), weight.data(), 1e-5, TensorOf(out, 1, 64)));
  ASSERT_OK_AND_ASSIGN(const std::vector<TimelineSpan> later, ops_.TakeTimeline());
  EXPECT_TRUE(later.empty()) << "it had ended";
}

TEST_F(HostOpsTest, CopiesBesideCompute) {
  const std::vector<std::byte> source(8 << 20, std::byte{9});
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(8 << 20));
  ASSERT_OK_AND_ASSIGN(const Event copied, ops_.CopyAsync(buffer.data(), source, {}));
  ASSERT_OK(ops_.Wait(copied, Soon()));
  EXPECT_TRUE(ops_.Passed(copied));
  EXPECT_EQ(buffer.data()[(8 << 20) - 1], std::byte{9});
}

TEST_F(HostOpsTest, PassesCopiesInOrder) {
  const std::vector<std::byte> first(1 << 20, std::byte{1}), second(1 << 20, std::byte{2});
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(1 << 20));
  ASSERT_OK_AND_ASSIGN(const Event a, ops_.CopyAsync(buffer.data(), first, {}));
  ASSERT_OK_AND_ASSIGN(const Event computed, ops_.MarkCompute());
  ASSERT_OK_AND_ASSIGN(const Event b, ops_.CopyAsync(buffer.data(), second, std::vector{a, computed, Event()}));
  ASSERT_OK(ops_.ComputeAfter(b));
  EXPECT_TRUE(ops_.Passed(a));
  EXPECT_EQ(buffer.data()[0], std::byte{2});
}

TEST_F(HostOpsTest, TakesADefaultEventAsPassed) {
  EXPECT_TRUE(ops_.Passed(Event()));
  EXPECT_OK(ops_.Wait(Event(), Deadline::In(absl::ZeroDuration())));
  EXPECT_OK(ops_.ComputeAfter(Event()));
  EXPECT_OK(ops_.Synchronize(Soon()));
}

TEST_F(HostOpsTest, EndsAWaitAtItsDeadline) {
  // The same 4 MiB many times over: a long time of copying in little memory.
  const std::vector<std::byte> source(4 << 20);
  ASSERT_OK_AND_ASSIGN(const DeviceBuffer buffer, ops_.Allocate(4 << 20));
  Event copied;
  for (int i = 0; i < 200; ++i) {
    ASSERT_OK_AND_ASSIGN(copied, ops_.CopyAsync(buffer.data(), source, {}));
  }
  EXPECT_THAT(ops_.Wait(copied, Deadline::In(absl::Milliseconds(1))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(ops_.Passed(copied));
  EXPECT_THAT(ops_.Synchronize(Deadline::In(absl::ZeroDuration())), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_OK(ops_.Synchronize(Soon()));
  EXPECT_TRUE(ops_.Passed(copied));
}

TEST_F(HostOpsTest, RefusesAnEventOfAnotherBackend) {
  struct OtherEvent : EventState {};
  const Event other = std::make_shared<OtherEvent>();
  EXPECT_THAT(ops_.Wait(other, Soon()), StatusIs(kInvalid));
  EXPECT_THAT(ops_.CopyAsync(nullptr, {}, std::vector{other}), StatusIs(kInvalid));
}

TEST_F(HostOpsTest, HoldsCopiesInsideAPinnedRegion) {
  const AlignedBytes source(8192), target(8192);
  ASSERT_OK(ops_.PinHost(source.span().first(4096), /*read_only=*/true));
  EXPECT_OK(ops_.CopyAsync(target.data(), source.span().subspan(4000, 96), {}));
  EXPECT_OK(ops_.CopyAsync(target.data(), source.span().subspan(4096, 96), {}));
  EXPECT_THAT(ops_.CopyAsync(target.data(), source.span().subspan(4000, 97), {}),
              StatusIs(kInvalid, HasSubstr("crosses the end of a pinned region")));
  EXPECT_THAT(ops_.PinHost(source.span().subspan(4095), true), StatusIs(kInvalid, HasSubstr("overlaps")));
  ops_.UnpinHost(source.span().first(4096));
  EXPECT_OK(ops_.PinHost(source.span().subspan(4095), true));
  EXPECT_OK(ops_.Synchronize(Soon()));
}

// -----------------------------------------------------------------------------------------------------------------
// batches

BatchSequence Sequence(int64_t first_row, int64_t num_rows, int64_t first_position, std::vector<int32_t> blocks = {}) {
  return {first_row, num_rows, first_position, std::move(blocks), {}};
}

TEST_F(HostOpsTest, KnowsTheSequenceAndPositionOfEachRow) {
  const HostBatch batch(Batch{{}, {Sequence(0, 2, 5), Sequence(2, 1, 9)}});
  EXPECT_EQ(batch.num_rows(), 3);
  EXPECT_EQ(batch.position(1), 6);
  EXPECT_EQ(batch.position(2), 9);
  EXPECT_EQ(&batch.sequence(1), &batch.host().sequences[0]);
  EXPECT_EQ(&batch.sequence(2), &batch.host().sequences[1]);
}

TEST_F(HostOpsTest, RefusesABatchThatDoesNotFitTogether) {
  const auto prepare = [&](std::vector<int32_t> ids, std::vector<BatchSequence> sequences) {
    return ops_.PrepareBatch(Batch{std::move(ids), std::move(sequences)});
  };
  EXPECT_OK(prepare({}, {}));
  EXPECT_OK(prepare({7, 8}, {Sequence(0, 1, 0, {0}), Sequence(1, 1, 31, {3})}));
  EXPECT_THAT(prepare({}, {Sequence(1, 1, 0)}), StatusIs(kInvalid, HasSubstr("sequences[0].first_row is 1, want 0")));
  EXPECT_THAT(prepare({}, {Sequence(0, 2, 0), Sequence(3, 1, 0)}),
              StatusIs(kInvalid, HasSubstr("sequences[1].first_row is 3, want 2")));
  EXPECT_THAT(prepare({}, {Sequence(0, 0, 0)}), StatusIs(kInvalid, HasSubstr("num_rows is 0")));
  EXPECT_THAT(prepare({}, {Sequence(0, 1, -1)}), StatusIs(kInvalid, HasSubstr("first_position is -1")));
  EXPECT_THAT(prepare({1}, {Sequence(0, 2, 0)}), StatusIs(kInvalid, HasSubstr("token_ids has 1 entries, want 2")));
  EXPECT_THAT(prepare({-1}, {Sequence(0, 1, 0)}), StatusIs(kInvalid, HasSubstr("token_ids[0] is -1")));
  EXPECT_THAT(prepare({}, {Sequence(0, 2, 31, {0})}),
              StatusIs(kInvalid, HasSubstr("blocks has 1 entries, want 2 for 33 positions")));
  EXPECT_THAT(prepare({}, {Sequence(0, 1, 0, {-4})}), StatusIs(kInvalid, HasSubstr("names block -4")));
}

TEST_F(HostOpsTest, RefusesABatchOfAnotherBackend) {
  struct OtherBatch : DeviceBatch {
    OtherBatch() : DeviceBatch(Batch{{0}, {Sequence(0, 1, 0)}}) {}
  };
  const OtherBatch batch;
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 4, 32, 1);
  std::vector<float> x(32);
  EXPECT_THAT(ops_.Embed(batch, 0, table.matrix, TensorOf(x, 1, 32)), StatusIs(kInvalid, HasSubstr("another backend")));
}

// ------------------------------------------------------------------------------------------------------- rows and
// experts

TEST_F(HostOpsTest, EmbedsTheRowsOfTheTokens) {
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kQ8_0, 40, 64, 1);
  const std::vector<float> values = table.Decoded();
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{7, 39, 0}, {Sequence(0, 3, 0)}}));
  std::vector<float> x(2 * 64);
  ASSERT_OK(ops_.Embed(*batch, 1, table.matrix, TensorOf(x, 2, 64)));
  EXPECT_EQ(x[3], values[39 * 64 + 3]);
  EXPECT_EQ(x[64 + 5], values[5]);
}

TEST_F(HostOpsTest, RefusesToEmbedWhatIsNotThere) {
  const OwnedTiledMatrix table = RandomTiledMatrix(DType::kF32, 40, 64, 1);
  ASSERT_OK_AND_ASSIGN(const auto batch, ops_.PrepareBatch({{7, 40}, {Sequence(0, 2, 0)}}));
  ASSERT_OK_AND_ASSIGN(const auto no_ids, ops_.PrepareBatch({{}, {Sequence(0, 2, 0)}}));
  std::vector<float> x(3 * 64);
  EXPECT_THAT(ops_.Embed(*batch, 0, table.matrix, TensorOf(x, 2, 64)),
              StatusIs(kInvalid, HasSubstr("token_ids[1] is 40, want 0 to 39")));
  EXPECT_THAT(ops_.Embed(*batch, 0, table.matrix, TensorOf(x, 1, 32)),
              StatusIs(kInvalid, HasSubstr("x is [1, 32], want [1, 64]")));
  EXPECT_THAT(ops_.Embed(*batch, 1, table.matrix, TensorOf(x, 2, 64)),
              StatusIs(kInvalid, HasSubstr("rows [1, 3) are not in a batch of 2 rows")));
  EXPECT_THAT(ops_.Embed(*no_ids, 0, table.matrix, TensorOf(x, 1, 64)), StatusIs(kInvalid, HasSubstr("no token_ids")));
  EXPECT_OK(ops_.Embed(*batch, 2, table.matrix, Tensor(nullptr, DType::kF32, 0, 64)));
}

TEST_F(HostOpsTest, GroupsAssignmentsByExpertInOrderOfRow) {
  // Three tokens, two experts each, of five.
  const std::vector<int32_t> experts = {4, 1, 1, 0, 4, 3};
  std::vector<int32_t> offsets(6), rows(6), outs(6);
  ASSERT_OK(ops_.GroupByExpert(experts.data(), 3, 2, 5, offsets.data(), rows.data(), outs.data()));
  EXPECT_THAT(offsets, ElementsAre(0, 1, 3, 3, 4, 6));
  EXPECT_THAT(rows, ElementsAre(1, 0, 1, 2, 0, 2));
  EXPECT_THAT(outs, ElementsAre(3, 1, 2, 5, 0, 4));
}

TEST_F(HostOpsTest, RefusesToGroupAnExpertOutOfRange) {
  std::vector<int32_t> experts = {0, 1, 5, 0}, offsets(6), rows(4), outs(4);
  const auto group = [&](int64_t num_rows, int64_t top_k) {
    return ops_.GroupByExpert(experts.data(), num_rows, top_k, 5, offsets.data(), rows.data(), outs.data());
  };
  EXPECT_THAT(group(2, 2), StatusIs(kInvalid, HasSubstr("experts[1, 0] is 5, want 0 to 4")));
  experts[2] = -1232513024;
  EXPECT_THAT(group(2, 2), StatusIs(kInvalid, HasSubstr("experts[1, 0] is -1232513024")));
  EXPECT_THAT(group(-1, 2), StatusIs(kInvalid, HasSubstr("rows is -1")));
  EXPECT_THAT(group(1, 6), StatusIs(kInvalid, HasSubstr("top_k is 6, want 1 to 5")));
  EXPECT_OK(ops_.GroupByExpert(nullptr, 0, 2, 5, nullptr, nullptr, nullptr));
}

TEST_F(HostOpsTest, ScattersHostRowsIntoContributions) {
  std::vector<float> contributions(3 * 2, -1);
  const std::vector<float> rows = {1, 2, 3, 4};
  ASSERT_OK(ops_.ScatterContributions(rows, std::vector<int32_t>{2, 0}, TensorOf(contributions, 3, 2)));
  EXPECT_THAT(contributions, ElementsAre(3, 4, -1, -1, 1, 2));
  EXPECT_THAT(ops_.ScatterContributions(rows, std::vector<int32_t>{2, 3}, TensorOf(contributions, 3, 2)),
              StatusIs(kInvalid, HasSubstr("outs[1] is 3, want 0 to 2")));
  EXPECT_THAT(ops_.ScatterContributions(rows, std::vector<int32_t>{2}, TensorOf(contributions, 3, 2)),
              StatusIs(kInvalid, HasSubstr("host_rows holds 4 numbers, want 2")));
}

TEST_F(HostOpsTest, DownloadsRows) {
  std::vector<float> in = {1, 2, 3, 4, 5, 6}, out(4);
  ASSERT_OK(ops_.DownloadRows(TensorOf(in, 3, 2), std::vector<int32_t>{2, 0}, out));
  EXPECT_THAT(out, ElementsAre(5, 6, 1, 2));
  EXPECT_THAT(ops_.DownloadRows(TensorOf(in, 3, 2), std::vector<int32_t>{0, -1}, out),
              StatusIs(kInvalid, HasSubstr("host_rows[1] is -1, want 0 to 2")));
  EXPECT_THAT(ops_.DownloadRows(TensorOf(in, 3, 2), std::vector<int32_t>{1}, out),
              StatusIs(kInvalid, HasSubstr("host_out holds 4 numbers, want 2")));
}

TEST_F(HostOpsTest, GathersRows) {
  std::vector<float> in = {1, 2, 3, 4, 5, 6}, out(4);
  ASSERT_OK(ops_.GatherRows(TensorOf(in, 3, 2), std::vector<int32_t>{2, 0}, TensorOf(out, 2, 2)));
  EXPECT_THAT(out, ElementsAre(5, 6, 1, 2));
  EXPECT_THAT(ops_.GatherRows(TensorOf(in, 3, 2), std::vector<int32_t>{3, 0}, TensorOf(out, 2, 2)),
              StatusIs(kInvalid, HasSubstr("host_rows[0] is 3")));
  EXPECT_THAT(ops_.GatherRows(TensorOf(in, 3, 2), std::vector<int32_t>{1}, TensorOf(out, 2, 2)),
              StatusIs(kInvalid, HasSubstr("out is [2, 2], want [1, 2]")));
}

TEST_F(HostOpsTest, ReadsTheBestLogitsAndTheTarget) {
  std::vector<float> logits = {1, 3, 3, -2, 0, 0, 0, 0};
  const std::vector<LogitsRequest> requests = {{.top_n = 3, .target = 3}, {.top_n = 0, .target = -1}};
  ASSERT_OK_AND_ASSIGN(const auto results, ops_.ReadLogits(TensorOf(logits, 2, 4), requests));
  EXPECT_THAT(results[0].ids, ElementsAre(1, 2, 0));  // the tie goes to the lower id
  EXPECT_THAT(results[0].logits, ElementsAre(3, 3, 1));
  EXPECT_EQ(results[0].target_logit, -2);
  EXPECT_NEAR(results[0].log_sum_exp, std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(-2.0)), 1e-6);
  EXPECT_TRUE(results[1].ids.empty());
  EXPECT_NEAR(results[1].log_sum_exp, std::log(4.0), 1e-6);
}

TEST_F(HostOpsTest, ReadsAllLogitsInOrderOfId) {
  std::vector<float> logits = {1, 3, 2};
  ASSERT_OK_AND_ASSIGN(const auto results, ops_.ReadLogits(TensorOf(logits, 1, 3), std::vector<LogitsRequest>{{3, -1}}));
  EXPECT_TRUE(results[0].ids.empty());
  EXPECT_THAT(results[0].logits, ElementsAre(1, 3, 2));
}

TEST_F(HostOpsTest, ReadsTheSameBestAsASort) {
  std::vector<float> logits = RandomFloats(5000, 3);
  for (float& logit : logits) logit = std::round(logit * 8);  // many ties
  logits[17] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_OK_AND_ASSIGN(const auto results, ops_.ReadLogits(TensorOf(logits, 1, 5000), std::vector<LogitsRequest>{{100, -1}}));
  logits[17] = -std::numeric_limits<float>::infinity();
  std::vector<int32_t> order(5000);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  order.resize(100);
  EXPECT_EQ(results[0].ids, order);
}

TEST_F(HostOpsTest, RefusesLogitRequestsThatDoNotFit) {
  std::vector<float> logits(6);
  const Tensor tensor = TensorOf(logits, 2, 3);
  EXPECT_THAT(ops_.ReadLogits(tensor, std::vector<LogitsRequest>(1)), StatusIs(kInvalid, HasSubstr("want 2")));
  EXPECT_THAT(ops_.ReadLogits(tensor, std::vector<LogitsRequest>{{0, 3}, {}}),
              StatusIs(kInvalid, HasSubstr("requests[0].target is 3, want -1 to 2")));
  EXPECT_THAT(ops_.ReadLogits(tensor, std::vector<LogitsRequest>{{}, {-1, 0}}),
              StatusIs(kInvalid, HasSubstr("requests[1].top_n is -1")));
}

}  // namespace
}  // namespace ferry
