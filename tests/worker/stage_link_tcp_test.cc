// Hidden states on a data connection, whose ends are Unix sockets here; with TLS between the hosts of
// tests/cluster/hosts_test.cc.

#include "worker/stage_link_tcp.h"

#include <signal.h>

#include <future>
#include <thread>

#include "absl/time/clock.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"
#include "tests/worker/send_rows.h"

namespace ferry {
namespace {

using testing::HasSubstr;

constexpr int64_t kEmbd = 512;
constexpr int64_t kMaxRows = 4000;  // 8 MB: messages of 1536 rows

class StageLinkTcp : public testing::Test {
 protected:
  void SetUp() override {
    signal(SIGPIPE, SIG_IGN);
    const ListenAddress at = {.loopback = true, .unix_path = sockets_.path() + "/data"};
    ASSERT_OK_AND_ASSIGN(const auto listener, DataListener::Listen(at, {}));
    auto accepted = std::async(std::launch::async, [&] { return listener->Accept(Soon(), absl::Seconds(20)); });
    ASSERT_OK_AND_ASSIGN(raw_, DataConnection::Connect(at, {}, Soon()));
    ASSERT_OK_AND_ASSIGN(auto other, accepted.get());
    ASSERT_OK_AND_ASSIGN(source_, MakeTcpSource(std::move(other), Options()));
  }
  static TcpLinkOptions Options() { return {.ops = nullptr, .n_embd = kEmbd, .max_rows = kMaxRows, .epoch = 7}; }
  // The sink of the connection; without it a test writes to raw_ what it likes.
  void MakeSink() { ASSERT_OK_AND_ASSIGN(sink_, MakeTcpSink(std::move(raw_), Options())); }

  static std::vector<float> Values(int64_t rows, float first) {
    std::vector<float> values(rows * kEmbd);
    for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i % 65536);
    return values;
  }
  // Rows of a step from its first one on.
  absl::StatusOr<std::vector<float>> Take(uint64_t step, int64_t rows, Deadline deadline = Soon()) {
    std::vector<float> values;
    while (static_cast<int64_t>(values.size()) < rows * kEmbd) {
      ASSIGN_OR_RETURN(const ActivationChunk chunk, source_->Next(step, static_cast<int64_t>(values.size()) / kEmbd, deadline));
      values.insert(values.end(), chunk.values.begin(), chunk.values.end());
    }
    return values;
  }
  absl::Status SendRaw(const ActivationHeader& header, int64_t floats) {
    RETURN_IF_ERROR(raw_->Send(Encode(header), Soon()));
    const std::vector<float> rows(floats);
    return raw_->Send(std::as_bytes(std::span(rows)), Soon());
  }
  static ActivationHeader RowHeader(uint64_t number, uint64_t step, int64_t first_row, int64_t num_rows) {
    return {.number = number, .epoch = 7, .step = step, .first_row = first_row, .num_rows = num_rows};
  }

  const SocketFolder sockets_;
  std::unique_ptr<DataConnection> raw_;
  std::unique_ptr<ActivationSink> sink_;
  std::unique_ptr<ActivationSource> source_;
};

TEST_F(StageLinkTcp, BringsRowsOfEverySizeInOrder) {
  MakeSink();
  uint64_t step = 0;
  for (const int64_t rows : {1, 2, 63, 64, 65, 1536, 1537, 4000, 1, 3999, 1}) {
    const std::vector<float> sent = Values(rows, static_cast<float>(++step));
    std::thread sending([&] { EXPECT_OK(SendRows(*sink_, step, sent, kEmbd, Soon())); });
    const absl::StatusOr<std::vector<float>> came = Take(step, rows);
    sending.join();
    ASSERT_OK(came);
    EXPECT_TRUE(*came == sent) << rows;
  }
}

TEST_F(StageLinkTcp, LetsASenderGoOnWhileTheReceiverComputes) {
  MakeSink();
  const std::vector<float> rows = Values(kMaxRows, 0);
  const Stopwatch sending;
  ASSERT_OK(SendRows(*sink_, 1, rows, kEmbd, Soon()));  // nobody takes them yet
  ASSERT_OK(SendRows(*sink_, 2, rows, kEmbd, Soon()));
  EXPECT_LT(sending.Elapsed(), absl::Seconds(10));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> first, Take(1, kMaxRows));
  ASSERT_OK_AND_ASSIGN(const std::vector<float> second, Take(2, kMaxRows));
  EXPECT_TRUE(first == rows && second == rows);
}

TEST_F(StageLinkTcp, HoldsABoundedNumberOfRowsAndThenEndsTheSend) {
  MakeSink();
  const std::vector<float> rows = Values(kMaxRows, 0);
  absl::Status sent;
  uint64_t step = 0;
  while (sent.ok() && step < 50) sent = SendRows(*sink_, ++step, rows, kEmbd, Deadline::In(absl::Milliseconds(300)));
  EXPECT_THAT(sent, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_LE(step, 6u) << "a step in the sink, one in the source, what one of each fills, and what the system holds";
}

TEST_F(StageLinkTcp, LooksWithoutWaitingAndFindsWhatComesInPieces) {
  const std::vector<float> row = Values(1, 3);
  const auto header = Encode(RowHeader(1, 1, 0, 1));
  const std::span<const std::byte> pieces[] = {std::span(header).first(10), std::span(header).subspan(10),
                                               std::as_bytes(std::span(row)).first(1), std::as_bytes(std::span(row)).subspan(1)};
  for (const auto piece : pieces) {
    EXPECT_THAT(source_->Next(1, 0, Deadline::In(absl::ZeroDuration())), StatusIs(absl::StatusCode::kDeadlineExceeded));
    ASSERT_OK(raw_->Send(piece, Soon()));
    absl::SleepFor(absl::Milliseconds(3));
  }
  ASSERT_OK_AND_ASSIGN(const std::vector<float> came, Take(1, 1));
  EXPECT_TRUE(came == row);
}

TEST_F(StageLinkTcp, TellsThatAStepFailedAndForgetsItsRows) {
  MakeSink();
  ASSERT_OK(SendRows(*sink_, 1, Values(2, 0), kEmbd, Soon()));
  ASSERT_OK(sink_->SendFailure(1, "no memory", Soon()));
  ASSERT_OK(sink_->SendFailure(2, std::string(5000, 'x'), Soon()));
  ASSERT_OK(SendRows(*sink_, 3, Values(1, 5), kEmbd, Soon()));
  ASSERT_OK(Take(1, 2));
  EXPECT_THAT(source_->Next(1, 2, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("no memory")));
  const absl::Status second = source_->Next(2, 0, Soon()).status();
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kAborted));
  EXPECT_LT(second.message().size(), 1200u);
  ASSERT_OK(Take(3, 1));
}

TEST_F(StageLinkTcp, SkipsStepsThatWereGivenUpHere) {
  MakeSink();
  ASSERT_OK(SendRows(*sink_, 1, Values(2, 0), kEmbd, Soon()));
  ASSERT_OK(SendRows(*sink_, 2, Values(1, 5), kEmbd, Soon()));
  ASSERT_OK(Take(2, 1));
}

TEST_F(StageLinkTcp, TellsASenderThatMeasuresWhatItHasTaken) {
  MakeSink();
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(SendRows(*sink_, 0, Values(2000, 1), kEmbd, Soon()));
    std::thread taking([&] {
      EXPECT_OK(Take(0, 2000));
      EXPECT_OK(source_->Confirm(Soon()));
    });
    EXPECT_OK(sink_->AwaitDropped(Soon()));
    taking.join();
  }
  EXPECT_THAT(sink_->AwaitDropped(Deadline::In(absl::Milliseconds(20))), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(StageLinkTcp, RefusesWhatASenderMayNotSendByName) {
  ASSERT_OK(SendRaw(RowHeader(1, 1, 0, 1), kEmbd));
  ASSERT_OK(Take(1, 1));
  ASSERT_OK(SendRaw(RowHeader(2, 1, 5, 1), kEmbd));
  for (int i = 0; i < 2; ++i) {  // for good
    EXPECT_THAT(source_->Next(1, 1, Soon()),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::AllOf(HasSubstr("the worker before this one"), HasSubstr("first_row is 5, want 1"))));
  }
}

TEST_F(StageLinkTcp, GivesWhatCameBeforeTheOtherEndWasGoneAndThenSaysSo) {
  ASSERT_OK(SendRaw(RowHeader(1, 1, 0, 1), kEmbd));
  ASSERT_OK(raw_->Send(Encode(RowHeader(2, 2, 0, 2)), Soon()));  // and dies in the middle of its rows
  raw_ = nullptr;
  ASSERT_OK(Take(1, 1));
  EXPECT_THAT(source_->Next(2, 0, Deadline::In(absl::Milliseconds(50))), StatusIs(absl::StatusCode::kDeadlineExceeded))
      << "the coordinator has a moment to end the epoch";
  const Stopwatch waiting;
  EXPECT_THAT(source_->Next(2, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("cannot be reached")));
  EXPECT_LT(waiting.Elapsed(), absl::Seconds(10));
}

TEST_F(StageLinkTcp, NoticesAReceiverThatIsGone) {
  MakeSink();
  source_ = nullptr;
  absl::Status sent;
  for (uint64_t step = 1; step < 100 && sent.ok(); ++step) sent = SendRows(*sink_, step, Values(1, 0), kEmbd, Soon());
  EXPECT_THAT(sent, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("the next worker")));
  EXPECT_THAT(sink_->SendFailure(200, "late", Soon()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(StageLinkTcp, EndsEveryWaitWithTheEpoch) {
  MakeSink();
  const auto soon_abort = [](auto& end) {
    return std::thread([&end] {
      absl::SleepFor(absl::Milliseconds(20));
      end.Abort();
    });
  };
  std::thread aborting = soon_abort(*source_);
  EXPECT_THAT(source_->Next(1, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch 7 is over")));
  aborting.join();
  aborting = soon_abort(*sink_);
  absl::Status sent;
  const std::vector<float> rows = Values(kMaxRows, 0);
  for (uint64_t step = 1; step < 100 && sent.ok(); ++step) sent = SendRows(*sink_, step, rows, kEmbd, Soon());
  EXPECT_FALSE(sent.ok());
  aborting.join();
  EXPECT_THAT(sink_->Reserve(1, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch 7 is over")));
}

TEST_F(StageLinkTcp, KeepsAChunkThatOutlivesTheLink) {
  MakeSink();
  const std::vector<float> rows = Values(1, 9);
  ASSERT_OK(SendRows(*sink_, 1, rows, kEmbd, Soon()));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk chunk, source_->Next(1, 0, Soon()));
  source_ = nullptr;
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), chunk.values.begin()));
}

}  // namespace
}  // namespace ferry
