// Hidden states between two workers over a data connection, on Unix sockets here: the choice, the agreement, the rows, and the
// ends of epochs and workers.

#include <thread>

#include "absl/time/clock.h"
#include "tests/worker/served_worker.h"
#include "worker/link_choice.h"

namespace ferry {
namespace {

using testing::HasSubstr;

LinkTime TcpTime(int64_t rows, int64_t tcp_us, int64_t grpc_us) {
  LinkTime time = {.rows = rows};
  time.tcp = absl::Microseconds(tcp_us);
  time.grpc = absl::Microseconds(grpc_us);
  return time;
}

TEST(LinkChoice, TakesTheDataConnectionUnlessGrpcIsFasterOverAllSizes) {
  EXPECT_TRUE(TakesTcp(std::vector{TcpTime(1, 50, 200), TcpTime(4096, 10000, 20000)}));
  EXPECT_TRUE(TakesTcp(std::vector{TcpTime(1, 50, 200), TcpTime(4096, 20000, 10000)})) << "four times, and half";
  EXPECT_FALSE(TakesTcp(std::vector{TcpTime(1, 150, 200), TcpTime(4096, 20000, 10000)}));
  EXPECT_TRUE(TakesTcp(std::vector{TcpTime(1, 100, 100)})) << "where the network is what takes the time";
}

TEST(LinkChoice, SaysBothFiguresOfMessages) {
  EXPECT_EQ(DescribeTcpChoice({}), "nothing was measured");
  EXPECT_EQ(DescribeTcpChoice(std::vector{TcpTime(1, 50, 200), TcpTime(64, 60, 300)}),
            "tcp and gRPC took 50 and 200 us for 1 rows, 60 and 300 us for 64 rows");
  const LinkTime longest = TcpTime(4096, 99'999'999, 99'999'999);
  EXPECT_LT(DescribeTcpChoice(std::vector(4, longest)).size(), 256u) << "a coordinator takes no longer text";
}

const std::vector<size_t> kLengths = {100, 1, 200};  // of prompts

class DataLinks : public testing::Test {
 protected:
  static StageLinkOptions With(Transport transport) {
    StageLinkOptions links;
    links.transport = transport;
    return links;
  }
  // What a neighbour asks first, and how it is answered.
  static absl::StatusOr<internal::v1::ListenForActivationsResponse> Listen(ServedWorker& worker, uint64_t epoch,
                                                                           uint64_t incarnation) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::ListenForActivationsRequest request;
    request.set_epoch(epoch);
    request.set_incarnation(incarnation);
    internal::v1::ListenForActivationsResponse response;
    const absl::Status status = FromGrpcStatus(worker.stub().ListenForActivations(&context, request, &response));
    return status.ok() ? absl::StatusOr<internal::v1::ListenForActivationsResponse>(response) : status;
  }
  static absl::Status Take(ServedWorker& worker, uint64_t epoch, const std::string& key,
                           absl::Duration patience = absl::Seconds(30)) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Deadline::In(patience)));
    internal::v1::TakeActivationsRequest request;
    request.set_epoch(epoch);
    request.set_incarnation(2);
    request.set_key(key);
    internal::v1::TakeActivationsResponse response;
    return FromGrpcStatus(worker.stub().TakeActivations(&context, request, &response));
  }
  static absl::StatusOr<std::unique_ptr<DataConnection>> ConnectTo(const std::string& socket) {
    ASSIGN_OR_RETURN(const ListenAddress at, ParseListenAddress(socket, 0));
    return DataConnection::Connect(at, {}, Soon());
  }
};

TEST_F(DataLinks, CarryEveryMessageWhereTheyAreAskedFor) {
  ServedWorker first(1, 0, 2, true, true, With(Transport::kTcp)), last(2, 2, 4, true, true, With(Transport::kAuto));
  for (const uint64_t epoch : {1, 2}) {
    ASSERT_OK(last.BeginEpoch(epoch, nullptr));
    ASSERT_OK(first.BeginEpoch(epoch, &last));
    EXPECT_EQ(first.link().way(), "tcp");
    ExpectTheLogitsOfOne(first, last, epoch, kLengths);
  }
}

TEST_F(DataLinks, AreMeasuredAgainstGrpcByAuto) {
  ServedWorker first(1, 0, 2, true, false), last(2, 2, 4, true, false);
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first.BeginEpoch(1, &last));
  const v1::HiddenStatesLink link = first.link();
  EXPECT_THAT(link.way(), testing::AnyOf("tcp", "grpc"));
  // More rows are tried while the time for it lasts, and none beyond 256.
  EXPECT_THAT(link.why(), testing::AllOf(HasSubstr("for 1 rows"), testing::Not(HasSubstr("for 512 rows"))));
  ExpectTheLogitsOfOne(first, last, 1, kLengths);
  ASSERT_OK(last.BeginEpoch(2, nullptr));
  ASSERT_OK(first.BeginEpoch(2, &last));
  EXPECT_EQ(first.link().why(), link.why()) << "the figures of the same two workers are kept";
  ExpectTheLogitsOfOne(first, last, 2, kLengths);
}

TEST_F(DataLinks, AreReplacedByGrpcWhereTheNextWorkerTakesNone) {
  ServedWorker first(1, 0, 2, true, false), last(2, 2, 4, true, false, With(Transport::kGrpc));
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first.BeginEpoch(1, &last));
  EXPECT_EQ(first.link().way(), "grpc");
  EXPECT_THAT(first.link().why(), HasSubstr("the next worker was started with --transport grpc"));
  ExpectTheLogitsOfOne(first, last, 1, kLengths);
  ServedWorker by_name(3, 0, 2, true, false, With(Transport::kTcp));
  ASSERT_OK(last.BeginEpoch(2, nullptr));
  EXPECT_THAT(by_name.BeginEpoch(2, &last),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::AllOf(HasSubstr("--transport tcp"), HasSubstr("grpc"))));
}

TEST_F(DataLinks, AreForTheOneThatWasGivenTheKey) {
  ServedWorker last(2, 2, 4);
  EXPECT_THAT(Listen(last, 1, 2), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is 1, want 0")));
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  EXPECT_THAT(Listen(last, 1, 9), StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 9")));
  ASSERT_OK_AND_ASSIGN(const auto offer, Listen(last, 1, 2));
  EXPECT_EQ(offer.port(), 0u) << "of a Unix socket";
  ASSERT_EQ(offer.key().size(), ActivationWords::kKeyBytes);
  EXPECT_THAT(Take(last, 1, std::string(32, 'x')), StatusIs(absl::StatusCode::kAborted, HasSubstr("this key")));
  EXPECT_THAT(Take(last, 1, offer.key(), absl::Milliseconds(300)), StatusIs(absl::StatusCode::kDeadlineExceeded));
  // Callers that may not, one of which says nothing, do not keep out the one that may.
  ASSERT_OK_AND_ASSIGN(const auto again, Listen(last, 1, 2));
  ASSERT_OK_AND_ASSIGN(const auto silent, ConnectTo(again.socket()));
  ASSERT_OK_AND_ASSIGN(const auto without_key, ConnectTo(again.socket()));
  ActivationWords words = {.incarnation = 2, .epoch = 1, .n_embd = Model().config.n_embd, .key = offer.key()};
  ASSERT_OK(without_key->Send(Encode(words), Soon()));
  ASSERT_OK_AND_ASSIGN(const auto with_key, ConnectTo(again.socket()));
  words.key = again.key();
  ASSERT_OK(with_key->Send(Encode(words), Soon()));
  EXPECT_OK(Take(last, 1, again.key()));
  EXPECT_THAT(Take(last, 1, again.key()), StatusIs(absl::StatusCode::kAborted)) << "a key is good once";
  std::byte byte;
  EXPECT_THAT(without_key->Receive({&byte, 1}, Soon()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(DataLinks, AreRefusedBehindTheFirstStep) {
  ServedWorker last(2, 2, 4);
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK_AND_ASSIGN(const auto offer, Listen(last, 1, 2));
  Stream steps(last);
  steps.Send(Request(1, 1, {1, 2}, /*timeout=*/0.05));
  EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kDeadlineExceeded);
  ASSERT_OK_AND_ASSIGN(const auto connection, ConnectTo(offer.socket()));
  const ActivationWords words = {.incarnation = 2, .epoch = 1, .n_embd = Model().config.n_embd, .key = offer.key()};
  ASSERT_OK(connection->Send(Encode(words), Soon()));
  EXPECT_THAT(Take(last, 1, offer.key()), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("had steps already")));
}

TEST_F(DataLinks, FailAStepByNameForWhatANeighbourMayNotSend) {
  ServedWorker last(2, 2, 4);
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK_AND_ASSIGN(const auto offer, Listen(last, 1, 2));
  ASSERT_OK_AND_ASSIGN(const auto connection, ConnectTo(offer.socket()));
  const ActivationWords words = {.incarnation = 2, .epoch = 1, .n_embd = Model().config.n_embd, .key = offer.key()};
  ASSERT_OK(connection->Send(Encode(words), Soon()));
  ASSERT_OK(Take(last, 1, offer.key()));
  Stream steps(last);
  steps.Send(Request(1, 1, {1, 2}));
  ASSERT_OK(
      connection->Send(Encode(ActivationHeader{.number = 1, .epoch = 1, .step = 1, .first_row = 0, .num_rows = 257}), Soon()));
  const internal::v1::StepResponse response = steps.Receive();
  EXPECT_EQ(CodeOf(response), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(response.message(), HasSubstr("num_rows is 257, want 1 to 256"));
  ASSERT_OK(last.BeginEpoch(2, nullptr)) << "the next epoch has another connection";
}

TEST_F(DataLinks, EndAStepWhoseNextWorkerIsGoneWithTheEpoch) {
  auto first = std::make_unique<ServedWorker>(1, 0, 2, true, false, With(Transport::kTcp));
  auto last = std::make_unique<ServedWorker>(2, 2, 4, true, false);
  ASSERT_OK(last->BeginEpoch(1, nullptr));
  ASSERT_OK(first->BeginEpoch(1, last.get()));
  last = nullptr;
  Stream steps(*first);
  absl::StatusCode code = absl::StatusCode::kOk;
  for (uint64_t step = 1; step < 50 && code == absl::StatusCode::kOk; ++step) {
    steps.Send(Request(1, step, {1, 2}));
    code = CodeOf(steps.Receive());
  }
  EXPECT_EQ(code, absl::StatusCode::kUnavailable);
  ServedWorker other(3, 2, 4, true, false);
  ASSERT_OK(other.BeginEpoch(2, nullptr));
  ASSERT_OK(first->BeginEpoch(2, &other));
  ExpectTheLogitsOfOne(*first, other, 2, kLengths);
}

TEST_F(DataLinks, EndAStepWhosePreviousWorkerIsGone) {
  auto first = std::make_unique<ServedWorker>(1, 0, 2, true, false, With(Transport::kTcp));
  ServedWorker last(2, 2, 4, true, false);
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first->BeginEpoch(1, &last));
  Stream steps(last);
  steps.Send(Request(1, 1, {1, 2}));
  first = nullptr;
  const internal::v1::StepResponse response = steps.Receive();
  EXPECT_EQ(CodeOf(response), absl::StatusCode::kAborted);
  EXPECT_THAT(response.message(), HasSubstr("the worker before this one cannot be reached"));
}

}  // namespace
}  // namespace ferry
