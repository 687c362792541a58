#include "coordinator/message_reads.h"

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

struct FakeRead final : MessageReads::Read {
  void Start() override { started = true; }
  void GiveUp() override { given_up = true; }
  void Refuse(const absl::Status& status) override { refused = status; }

  std::atomic<bool> started = false, given_up = false;
  absl::Status refused;
};

// Three at once, two of a host, one of a connection; four wait, three of a host, two of a connection.
class MessageReadsTest : public ::testing::Test {
 protected:
  std::unique_ptr<FakeRead> Begin(const std::string& peer) {
    auto read = std::make_unique<FakeRead>();
    reads_->Begin(read.get(), peer);
    return read;
  }
  bool Eventually(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::In(absl::Seconds(20));
    while (!condition() && !deadline.Passed()) absl::SleepFor(absl::Milliseconds(5));
    return condition();
  }

  FakeClock clock_;
  const std::unique_ptr<MessageReads> reads_ = MessageReads::Create(&clock_, {.all = 3,
                                                                              .of_host = 2,
                                                                              .of_host_with_firsts = 2,
                                                                              .of_connection = 1,
                                                                              .all_waiting = 4,
                                                                              .of_host_waiting = 3,
                                                                              .of_connection_waiting = 2})
                                                   .value();
};

TEST_F(MessageReadsTest, AConnectionThatStallsLeavesRoomForOthers) {
  const auto first = Begin("ipv4:10.0.0.1:1000"), same_connection = Begin("ipv4:10.0.0.1:1000");
  const auto same_host = Begin("ipv4:10.0.0.1:1001"), third_of_host = Begin("ipv4:10.0.0.1:1002");
  const auto other = Begin("ipv4:10.0.0.2:1000");
  EXPECT_TRUE(first->started && same_host->started && other->started);
  EXPECT_FALSE(same_connection->started || third_of_host->started);
  reads_->Ended(same_host.get());
  EXPECT_TRUE(third_of_host->started) << "its connection has room";
  EXPECT_FALSE(same_connection->started);
  reads_->Ended(first.get());
  EXPECT_TRUE(same_connection->started);
}

TEST_F(MessageReadsTest, LocalSocketsCountInAllAlone) {
  const auto a = Begin("unix:/run/socket"), b = Begin("unix:/run/socket"), c = Begin("unix:/run/socket");
  EXPECT_TRUE(a->started && b->started && c->started);
  const auto d = Begin("unix:/run/socket");
  EXPECT_FALSE(d->started);
  reads_->Ended(b.get());
  EXPECT_TRUE(d->started);
}

TEST_F(MessageReadsTest, AConnectionHasItsShareOfThoseThatWait) {
  std::vector<std::unique_ptr<FakeRead>> flood;
  for (int i = 0; i < 4; ++i) flood.push_back(Begin("ipv4:10.0.0.1:1"));
  EXPECT_TRUE(flood[0]->started);
  EXPECT_OK(flood[2]->refused);
  EXPECT_THAT(flood[3]->refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("2 messages of this connection")));
}

TEST_F(MessageReadsTest, WhoHasMostMakesRoomForOthers) {
  std::vector<std::unique_ptr<FakeRead>> flood;
  for (int i = 0; i < 6; ++i) flood.push_back(Begin(i % 2 == 0 ? "ipv4:10.0.0.1:1" : "ipv4:10.0.0.1:2"));
  // Each has one that is read; of four that would wait, the host has room for three.
  EXPECT_THAT(flood[5]->refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("3 messages of this host")));
  const auto other = Begin("ipv4:10.0.0.1:3");
  EXPECT_OK(other->refused);
  EXPECT_THAT(flood[4]->refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("has most")));
  for (int i = 0; i < 4; ++i) EXPECT_OK(flood[static_cast<size_t>(i)]->refused);
}

TEST_F(MessageReadsTest, SomeReadsAreKeptForConnectionsThatHaveNone) {
  const auto reads =
      MessageReads::Create(&clock_, {.all = 4, .of_host = 2, .of_host_with_firsts = 3, .of_connection = 2}).value();
  FakeRead first, second, third, other, others_second;
  for (FakeRead* const read : {&first, &second, &third}) reads->Begin(read, "ipv4:10.0.0.1:1");
  reads->Begin(&other, "ipv4:10.0.0.1:2");
  reads->Begin(&others_second, "ipv4:10.0.0.1:2");
  EXPECT_TRUE(first.started && second.started && other.started);
  EXPECT_FALSE(third.started || others_second.started);
}

TEST_F(MessageReadsTest, GivesUpWhatTakesTooLong) {
  const auto slow = Begin("ipv4:10.0.0.1:1"), waits = Begin("ipv4:10.0.0.1:1");
  clock_.Advance(absl::Seconds(21));
  EXPECT_TRUE(Eventually([&] { return slow->given_up.load(); }));
  EXPECT_FALSE(waits->started) << "the slow one has not ended yet";
  reads_->Ended(slow.get());
  EXPECT_TRUE(waits->started);
}

TEST_F(MessageReadsTest, CloseRefusesThoseThatWaitAndThoseThatCome) {
  const auto reads = Begin("ipv4:10.0.0.1:1"), waits = Begin("ipv4:10.0.0.1:1");
  reads_->Close();
  EXPECT_THAT(waits->refused, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(Begin("ipv4:10.0.0.2:1")->refused, StatusIs(absl::StatusCode::kUnavailable));
  reads_->Ended(reads.get());
}

}  // namespace
}  // namespace ferry
