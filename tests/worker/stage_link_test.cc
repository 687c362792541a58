#include "worker/stage_link.h"

#include <thread>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"
#include "tests/worker/send_rows.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Row(float value) {
  const float row[2] = {value, value};
  return {reinterpret_cast<const char*>(row), sizeof(row)};
}
class ActivationQueueTest : public testing::Test {
 protected:
  ActivationQueueTest() { queue_.BeginEpoch(7); }
  ActivationQueue queue_{/*n_embd=*/2, /*max_rows=*/4};
};

TEST_F(ActivationQueueTest, GivesChunksInTheOrderInWhichTheyCame) {
  ASSERT_OK(queue_.Push(7, 1, 0, 1, Row(1)));
  ASSERT_OK(queue_.Push(7, 1, 1, 2, Row(2) + Row(3)));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk first, queue_.Next(1, 0, Soon()));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk second, queue_.Next(1, 1, Soon()));
  EXPECT_THAT(first.values, ElementsAre(1, 1));
  EXPECT_EQ(second.first_row, 1);
  EXPECT_THAT(second.values, ElementsAre(2, 2, 3, 3));
}

TEST_F(ActivationQueueTest, RefusesAnotherEpoch) {
  EXPECT_THAT(queue_.Push(6, 1, 0, 1, Row(1)), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is 6, want 7")));
  EXPECT_THAT(queue_.Push(8, 1, 0, 1, Row(1)), StatusIs(absl::StatusCode::kAborted));
  queue_.BeginEpoch(0);
  EXPECT_THAT(queue_.Push(0, 1, 0, 1, Row(1)), StatusIs(absl::StatusCode::kAborted)) << "none lasts";
}

TEST_F(ActivationQueueTest, GivesWhatCameBeforeItWasCutOffAndThenSaysWhy) {
  ASSERT_OK(queue_.Push(7, 1, 0, 1, Row(1)));
  queue_.Break(7, "the cable is out");
  EXPECT_OK(queue_.Next(1, 0, Soon()));
  EXPECT_THAT(queue_.Next(2, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("the cable is out")));
  queue_.BeginEpoch(8);
  ASSERT_OK(queue_.Push(8, 1, 0, 1, Row(1)));
  EXPECT_OK(queue_.Next(1, 0, Soon())) << "the next epoch has another sender";
}

TEST_F(ActivationQueueTest, IsNotCutOffByASenderOfAnEarlierEpoch) {
  queue_.Break(6, "it is long gone");
  ASSERT_OK(queue_.Push(7, 1, 0, 1, Row(1)));
  EXPECT_OK(queue_.Next(1, 0, Soon()));
  EXPECT_THAT(queue_.Next(2, 0, Deadline::In(absl::Milliseconds(20))), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(ActivationQueueTest, RefusesWhatDoesNotFollow) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(queue_.PushFailure(7, 0, "lost"), StatusIs(kInvalid, HasSubstr("step is 0")));
  EXPECT_THAT(queue_.PushAnnouncement(7, 0, 0, 1), StatusIs(kInvalid, HasSubstr("step is 0")));
  EXPECT_THAT(queue_.Push(7, 2, 1, 1, Row(1)), StatusIs(kInvalid, HasSubstr("first_row is 1, want 0")));
  EXPECT_THAT(queue_.Push(7, 2, -1, 1, Row(1)), StatusIs(kInvalid, HasSubstr("first_row")));
  ASSERT_OK(queue_.Push(7, 2, 0, 1, Row(1)));
  EXPECT_THAT(queue_.Push(7, 1, 0, 1, Row(1)), StatusIs(kInvalid, HasSubstr("step is 1 after 2")));
  EXPECT_THAT(queue_.Push(7, 0, 0, 1, Row(1)), StatusIs(kInvalid, HasSubstr("step is 0 after 2")));
  EXPECT_THAT(queue_.Push(7, 2, 0, 1, Row(1)), StatusIs(kInvalid, HasSubstr("first_row is 0, want 1")));
  EXPECT_THAT(queue_.Push(7, 2, 2, 1, Row(1)), StatusIs(kInvalid, HasSubstr("first_row is 2, want 1")));
}

TEST_F(ActivationQueueTest, TakesMessagesOfAMeasurementBeforeTheFirstStepAlone) {
  for (int message = 0; message < 3; ++message) {
    ASSERT_OK(queue_.Push(7, 0, 0, 2, Row(1) + Row(2)));
    ASSERT_OK(queue_.Push(7, 0, 2, 2, Row(3) + Row(4)));
    ASSERT_OK(queue_.Next(0, 0, Soon()));
    ASSERT_OK(queue_.Next(0, 2, Soon()));
  }
  ASSERT_OK(queue_.Push(7, 0, 0, 1, Row(9))) << "given up";
  ASSERT_OK(queue_.Push(7, 1, 0, 1, Row(5)));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk chunk, queue_.Next(1, 0, Soon()));
  EXPECT_THAT(chunk.values, ElementsAre(5, 5));
}

TEST_F(ActivationQueueTest, RefusesSizesThatDisagree) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(queue_.Push(7, 1, 0, 0, ""), StatusIs(kInvalid, HasSubstr("num_rows is 0, want 1 to 4")));
  EXPECT_THAT(queue_.Push(7, 1, 0, 5, std::string(40, 'x')), StatusIs(kInvalid, HasSubstr("num_rows is 5")));
  EXPECT_THAT(queue_.Push(7, 1, 0, 4294967295, Row(1)), StatusIs(kInvalid, HasSubstr("num_rows")));
  EXPECT_THAT(queue_.Push(7, 1, 0, 1, std::string(7, 'x')), StatusIs(kInvalid, HasSubstr("data has 7 bytes, want 8")));
}

TEST_F(ActivationQueueTest, GivesAnnouncementsInTheOrderOfRows) {
  ASSERT_OK(queue_.Push(7, 1, 0, 1, Row(1)));
  ASSERT_OK(queue_.PushAnnouncement(7, 1, 1, 3));
  ASSERT_OK(queue_.Next(1, 0, Soon()));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk announced, queue_.Next(1, 1, Soon()));
  EXPECT_EQ(announced.announced_rows, 3);
  EXPECT_TRUE(announced.values.empty());
  EXPECT_THAT(queue_.PushAnnouncement(7, 2, 0, 5), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_rows is 5")));
  EXPECT_THAT(queue_.PushAnnouncement(6, 2, 0, 1), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(queue_.Receive(nullptr, 3, Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("no such way")));
}

TEST_F(ActivationQueueTest, EndsWhenAnnouncedRowsOfAFailedStepWereNeverReceived) {
  ASSERT_OK(queue_.PushAnnouncement(7, 1, 0, 2));
  ASSERT_OK(queue_.Push(7, 2, 0, 1, Row(3)));
  EXPECT_THAT(queue_.Next(2, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("step 1 were announced")));
}

TEST_F(ActivationQueueTest, HoldsABoundedNumberOfAnnouncements) {
  absl::Status status;
  for (uint64_t step = 1; step < 10'000 && status.ok(); ++step) status = queue_.PushAnnouncement(7, step, 0, 1);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(ActivationQueueTest, EndsAWaitAtItsDeadline) {
  EXPECT_THAT(queue_.Next(1, 0, Deadline::In(absl::Milliseconds(20))), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(ActivationQueueTest, EndsAWaitWhenTheEpochEnds) {
  std::thread ender([&] {
    absl::SleepFor(absl::Milliseconds(20));
    queue_.BeginEpoch(8);
  });
  EXPECT_THAT(queue_.Next(1, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch 7 is over")));
  ender.join();
}

TEST_F(ActivationQueueTest, ForgetsTheRowsOfAStepThatWasGivenUp) {
  ASSERT_OK(queue_.Push(7, 1, 0, 2, Row(1) + Row(2)));
  ASSERT_OK(queue_.Push(7, 2, 0, 1, Row(3)));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk chunk, queue_.Next(2, 0, Soon()));
  EXPECT_THAT(chunk.values, ElementsAre(3, 3));
}

TEST_F(ActivationQueueTest, TellsAtOnceThatAStepFailedEarlier) {
  ASSERT_OK(queue_.Push(7, 1, 0, 1, Row(1)));
  ASSERT_OK(queue_.PushFailure(7, 1, "no memory"));
  ASSERT_OK(queue_.Push(7, 2, 0, 1, Row(2)));
  ASSERT_OK(queue_.Next(1, 0, Soon()));
  EXPECT_THAT(queue_.Next(1, 1, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("no memory")));
  EXPECT_OK(queue_.Next(2, 0, Soon())) << "the next step is not concerned";
}

TEST_F(ActivationQueueTest, HoldsABoundedNumberOfFailures) {
  ASSERT_OK(queue_.PushFailure(7, 1, std::string(1 << 20, 'x')));
  EXPECT_THAT(queue_.PushFailure(7, 1, "again"), StatusIs(absl::StatusCode::kInvalidArgument));
  const absl::Status told = queue_.Next(1, 0, Deadline::In(absl::ZeroDuration())).status();
  EXPECT_THAT(told, StatusIs(absl::StatusCode::kAborted));
  EXPECT_LT(told.message().size(), 2000u);
  absl::Status status;
  for (uint64_t step = 2; step < 10'000 && status.ok(); ++step) status = queue_.PushFailure(7, step, "lost");
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
  // A reader that goes on to a later step makes room for those before it.
  EXPECT_THAT(queue_.Next(50, 0, Deadline::In(absl::ZeroDuration())), StatusIs(absl::StatusCode::kAborted));
  EXPECT_OK(queue_.PushFailure(7, 10'001, "lost"));
}

TEST_F(ActivationQueueTest, MakesTheSenderWaitWhenItIsFull) {
  ASSERT_OK(queue_.Push(7, 1, 0, 4, Row(1) + Row(2) + Row(3) + Row(4)));
  std::thread sender([&] { EXPECT_OK(queue_.Push(7, 2, 0, 1, Row(5))); });
  absl::SleepFor(absl::Milliseconds(20));
  ASSERT_OK(queue_.Next(1, 0, Soon()));
  sender.join();
  EXPECT_OK(queue_.Next(2, 0, Soon()));
}

TEST_F(ActivationQueueTest, LetsAWaitingSenderGoWhenItIsCancelled) {
  ASSERT_OK(queue_.Push(7, 1, 0, 4, Row(1) + Row(2) + Row(3) + Row(4)));
  EXPECT_THAT(queue_.Push(7, 2, 0, 1, Row(5), [] { return true; }), StatusIs(absl::StatusCode::kCancelled));
}

TEST(LoopbackSink, JoinsTwoStages) {
  ActivationQueue queue(2, 4);
  queue.BeginEpoch(1);
  LoopbackSink sink(&queue, 2, 1);
  const std::vector<float> rows = {1, 2, 3, 4};
  ASSERT_OK(SendRows(sink, 1, rows, 2, Soon()));
  ASSERT_OK(sink.SendFailure(2, "why not", Soon()));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk chunk, queue.Next(1, 0, Soon()));
  EXPECT_THAT(chunk.values, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(queue.Next(2, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("why not")));
}

}  // namespace
}  // namespace ferry
