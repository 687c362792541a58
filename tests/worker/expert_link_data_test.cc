// The link over data connections against a coordinator's end inside the test, with the faults that a real one does not have.

#include <gtest/gtest.h>

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "common/expert_wire.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/soon.h"
#include "tests/worker/tiny_model.h"
#include "worker/expert_link.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr MailboxShape kDataShape = {.n_embd = 64, .max_rows = 4, .max_entries = 8, .max_experts = 8};
constexpr FirstWords kDataWords = {.incarnation = 77, .worker = 1, .fingerprint = 5, .num_layers = 4, .shape = kDataShape};

// Sends records of the tiny model. Computes 2 * the input row. Ships experts of more than two tokens.
class FakeExperts {
 public:
  FakeExperts() {
    listener_ = DataListener::Listen(address(), {}).value();
    accepting_ = std::thread([this] {
      while (!stop_) {
        absl::StatusOr<std::unique_ptr<DataConnection>> accepted =
            listener_->Accept(Deadline::In(absl::Milliseconds(20)), absl::Seconds(3));
        if (!accepted.ok() || *accepted == nullptr) continue;
        ++connections;
        DataConnection& connection = *sessions_.emplace_back(*std::move(accepted));
        threads_.emplace_back([this, &connection] { Serve(connection); });
      }
    });
  }
  ~FakeExperts() {
    stop_ = true;
    silent = false;
    accepting_.join();
    for (const auto& session : sessions_) session->Cut();
    for (std::thread& thread : threads_) thread.join();
  }
  ListenAddress address() const { return {.loopback = true, .unix_path = folder_.path() + "/experts"}; }

  std::atomic<bool> silent{false};  // answers wait
  std::atomic<bool> refuses{false};
  std::atomic<bool> answers_another{false};  // request than the one that was sent
  std::atomic<int> connections{0}, asked{0};
  std::atomic<uint64_t> newest_step{0};  // of a plan: records of earlier ones are refused
  FirstWords words = kDataWords;
  absl::Duration pause = absl::ZeroDuration();  // before each answer; before the first request

 private:
  void Serve(DataConnection& connection) {
    std::array<std::byte, kFirstWordsBytes> said;
    if (!connection.Receive(said, Soon()).ok()) return;
    absl::Status status = connection.Send(Encode(words), Soon());
    for (uint64_t number = 1; status.ok() && !stop_; ++number) status = Answer(connection, number);
    connection.Cut();
  }

  absl::Status Answer(DataConnection& connection, uint64_t number) {
    std::array<std::byte, kHeaderBytes> bytes;
    RETURN_IF_ERROR(connection.Receive(bytes, Deadline::Never()));
    ASSIGN_OR_RETURN(const RequestHeader header, ParseRequestHeader(bytes, kDataShape, number, kCoordinatorKinds));
    std::vector<uint32_t> ids(IdWords(header));
    if (!ids.empty()) RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(ids)), Soon()));
    std::vector<float> rows(RowsBehind(header) * kDataShape.n_embd);
    if (!rows.empty()) RETURN_IF_ERROR(connection.Receive(std::as_writable_bytes(std::span(rows)), Soon()));
    ++asked;
    while (silent && !stop_) absl::SleepFor(absl::Milliseconds(2));
    absl::SleepFor(pause);
    const ExpertRequest request = RequestOf(header, ids);
    AnswerHeader answer = {.number = number, .step = header.step, .layer = header.layer, .num_entries = header.num_entries};
    if (answers_another) answer.step += 1;
    const bool over = header.kind == WireKind::kRecord && header.step < newest_step;
    if (refuses || over) {
      const std::string text = over ? "the step is over" : "no";
      answer.code = over ? absl::StatusCode::kAborted : absl::StatusCode::kInternal;
      answer.num_entries = 0;
      answer.text_bytes = static_cast<int32_t>(text.size());
      RETURN_IF_ERROR(connection.Send(Encode(answer), Soon()));
      return connection.Send(std::as_bytes(std::span(text)), Soon());
    }
    RETURN_IF_ERROR(connection.Send(Encode(answer), Soon()));
    return connection.Send(BodyOf(header, request, rows), Soon());
  }

  std::vector<std::byte> BodyOf(const RequestHeader& header, const ExpertRequest& request, const std::vector<float>& rows) {
    std::vector<std::byte> body;
    const auto append = [&body](const void* data, size_t size) {
      const std::byte* const first = static_cast<const std::byte*>(data);
      body.insert(body.end(), first, first + size);
    };
    if (header.kind == WireKind::kRecord) {
      const auto record = Model().Record(header.layer, request.uses[0].expert);
      append(record.data(), record.size());
    } else if (header.kind == WireKind::kPlan) {
      newest_step = header.step;
      for (const ActivatedExpert& use : request.uses) {
        const ExpertPlace place = use.resident == 1 ? ExpertPlace::kResident
                                  : use.tokens > 2  ? ExpertPlace::kShip
                                                    : ExpertPlace::kHost;
        append(&place, 1);
      }
    } else if (header.kind == WireKind::kProbe) {
      append(rows.data(), rows.size() * sizeof(float));
    } else {
      for (const int32_t row : request.entry_rows) {
        for (int64_t i = 0; i < kDataShape.n_embd; ++i) {
          const float value = 2 * rows[row * kDataShape.n_embd + i];
          append(&value, sizeof(value));
        }
      }
    }
    return body;
  }

  const SocketFolder folder_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<DataListener> listener_;
  std::list<std::unique_ptr<DataConnection>> sessions_;  // of the accepting thread, until it has ended
  std::list<std::thread> threads_;
  std::thread accepting_;
};

class DataLinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(
        link_, ConnectDataLink({.address = coordinator_.address(), .identity = {}, .words = kDataWords, .arena = Model().layout},
                               ops_.get(), Soon()));
  }
  HostRequest TwoRows() { return {.step = 1, .layer = 0, .num_rows = 2, .uses = uses_, .entry_rows = entry_rows_}; }

  const std::vector<ActivatedExpert> uses_ = {{.expert = 1, .tokens = 1}, {.expert = 6, .tokens = 2}};
  const std::vector<int32_t> entry_rows_ = {1, 0, 1};
  std::unique_ptr<Ops> ops_ = MakeOps();
  FakeExperts coordinator_;
  std::unique_ptr<ExpertLink> link_;
};

TEST_F(DataLinkTest, BringsRecordsMoreThanItsBuffersHold) {
  for (int32_t expert = 0; expert < 8; ++expert) ASSERT_OK(link_->AskRecord(1, {2, expert}));
  for (int32_t expert = 0; expert < 8; ++expert) {
    ASSERT_OK_AND_ASSIGN(const auto record, link_->WaitRecord({2, expert}, Soon()));
    const auto want = Model().Record(2, expert);
    EXPECT_TRUE(std::equal(record.begin(), record.end(), want.begin(), want.end())) << "expert " << expert;
    link_->ReleaseRecord({2, expert});
  }
  // One for plans, and one for each fetcher that had something to do: a quick one may have left nothing to the other.
  EXPECT_GE(coordinator_.connections, 2);
  EXPECT_LE(coordinator_.connections, 3);
}

TEST_F(DataLinkTest, AsksAgainInTheNewStepWhenTheOldOneHasBeenOvertaken) {
  coordinator_.silent = true;
  ASSERT_OK(link_->AskRecord(1, {0, 1}));
  while (coordinator_.asked == 0) absl::SleepFor(absl::Milliseconds(1));
  coordinator_.newest_step = 2;
  std::thread later([&] { EXPECT_OK(link_->Plan(2, 0, 1, {}, 0, Soon())); });
  while (coordinator_.asked == 1) absl::SleepFor(absl::Milliseconds(1));
  coordinator_.silent = false;
  later.join();
  EXPECT_OK(link_->WaitRecord({0, 1}, Soon()));
}

TEST_F(DataLinkTest, ARecordThatNobodyWantsAnyMoreCostsNoBuffer) {
  coordinator_.silent = true;
  ASSERT_OK(link_->AskRecord(1, {0, 1}));
  EXPECT_FALSE(link_->RecordHere({0, 1}));
  EXPECT_THAT(link_->WaitRecord({0, 1}, Deadline::In(absl::Milliseconds(30))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  link_->ReleaseRecord({0, 1});
  coordinator_.silent = false;
  for (int32_t expert = 0; expert < 8; ++expert) ASSERT_OK(link_->AskRecord(1, {1, expert}));
  for (int32_t expert = 0; expert < 8; ++expert) {
    EXPECT_OK(link_->WaitRecord({1, expert}, Soon()));
    link_->ReleaseRecord({1, expert});
  }
}

TEST_F(DataLinkTest, AsksThePlanner) {
  const std::vector<ActivatedExpert> uses = {
      {.expert = 0, .tokens = 1}, {.expert = 2, .tokens = 1, .resident = 1}, {.expert = 5, .tokens = 9}};
  ASSERT_OK_AND_ASSIGN(const auto places, link_->Plan(1, 0, 11, uses, 0, Soon()));
  EXPECT_THAT(places, ElementsAre(ExpertPlace::kHost, ExpertPlace::kResident, ExpertPlace::kShip));
}

TEST_F(DataLinkTest, MeasuresWhatAnExchangeCostsAndThenComputes) {
  coordinator_.pause = absl::Milliseconds(5);
  ASSERT_OK_AND_ASSIGN(const ExchangeCost cost, link_->MeasureExchange(Soon()));
  EXPECT_GE(cost.exchange_seconds + 2 * cost.row_seconds, 5e-3);
  EXPECT_GE(cost.row_seconds, 0);
  link_->HostRows(2);
  ASSERT_OK(link_->StartCompute(TwoRows()));
  EXPECT_OK(link_->FinishCompute(Soon()));
}

TEST_F(DataLinkTest, HasTheHostCompute) {
  const std::span<float> rows = link_->HostRows(2);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  ASSERT_OK(link_->StartCompute(TwoRows()));
  ASSERT_OK_AND_ASSIGN(const auto contributions, link_->FinishCompute(Soon()));
  ASSERT_EQ(contributions.size(), 3u * 64);
  EXPECT_EQ(contributions[0], 128) << "row 1";
  EXPECT_EQ(contributions[64 + 3], 6) << "row 0";
}

TEST_F(DataLinkTest, EndsAComputationAtItsDeadlineAndStartsTheNext) {
  coordinator_.silent = true;
  link_->HostRows(2);
  ASSERT_OK(link_->StartCompute(TwoRows()));
  EXPECT_THAT(link_->StartCompute(TwoRows()), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(link_->FinishCompute(Deadline::In(absl::Milliseconds(30))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  coordinator_.silent = false;
  link_->HostRows(2);
  ASSERT_OK(link_->StartCompute(TwoRows())) << "over a new connection, since the late answer would come on the old one";
  EXPECT_OK(link_->FinishCompute(Soon()));
}

TEST_F(DataLinkTest, TheCoordinatorsRefusalLeavesTheConnection) {
  coordinator_.refuses = true;
  EXPECT_THAT(link_->Plan(1, 0, 1, {}, 0, Soon()), StatusIs(absl::StatusCode::kInternal, "no"));
  coordinator_.refuses = false;
  EXPECT_OK(link_->Plan(1, 0, 1, {}, 0, Soon()));
  EXPECT_EQ(coordinator_.connections, 1);
}

TEST_F(DataLinkTest, AnAnswerToAnotherRequestIsRefusedAndTheNextOneIsAskedAnew) {
  coordinator_.answers_another = true;
  EXPECT_THAT(link_->Plan(1, 0, 1, {}, 0, Soon()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("step is 2, want 1")));
  coordinator_.answers_another = false;
  EXPECT_OK(link_->Plan(1, 0, 1, {}, 0, Soon()));
  EXPECT_EQ(coordinator_.connections, 2);
}

TEST_F(DataLinkTest, ACoordinatorWithAnotherModelIsNamedAtOnce) {
  FakeExperts other;
  other.words.fingerprint = 6;
  EXPECT_THAT(ConnectDataLink({.address = other.address(), .identity = {}, .words = kDataWords, .arena = Model().layout},
                              ops_.get(), Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another model")));
}

TEST_F(DataLinkTest, EndsWhileARecordIsComing) {
  coordinator_.silent = true;
  ASSERT_OK(link_->AskRecord(1, {0, 1}));
  while (coordinator_.asked == 0) absl::SleepFor(absl::Milliseconds(1));
  link_ = nullptr;  // and does not wait for it
}

TEST(DataLink, WithoutACoordinatorTheErrorSaysWhere) {
  const std::unique_ptr<Ops> ops = MakeOps();
  const SocketFolder folder;
  EXPECT_THAT(ConnectDataLink({.address = {.loopback = true, .unix_path = folder.path() + "/nobody"},
                               .identity = {},
                               .words = kDataWords,
                               .arena = Model().layout},
                              ops.get(), Soon()),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("/nobody")));
}

}  // namespace
}  // namespace ferry
