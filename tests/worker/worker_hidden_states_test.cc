// Hidden states between two workers on loopback.

#include <grpcpp/grpcpp.h>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/machine_id.h"
#include "common/rpc/rpc_deadline.h"
#include "tests/testing/soon.h"
#include "tests/worker/send_rows.h"
#include "tests/worker/served_worker.h"
#include "worker/next_worker.h"
#include "worker/worker_service.h"

namespace ferry {
namespace {

using testing::HasSubstr;

// By messages, in epoch 1.
absl::StatusOr<std::unique_ptr<ActivationSink>> Connect(const std::string& address, Incarnation next) {
  NextWorker worker;
  return worker.Connect(address, next, /*epoch=*/1, {.n_embd = 64}, /*runner=*/nullptr, Soon());
}

class TwoWorkers : public testing::TestWithParam<std::tuple<bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(Sharing, TwoWorkers, testing::Combine(testing::Bool(), testing::Bool()));

TEST_P(TwoWorkers, GiveTheLogitsOfOneWhicheverOfThemSharesMemory) {
  ServedWorker first(1, 0, 2, true, std::get<0>(GetParam())), last(2, 2, 4, true, std::get<1>(GetParam()));
  ASSERT_OK(last.BeginEpoch(5, nullptr));
  ASSERT_OK(first.BeginEpoch(5, &last));
  ExpectTheLogitsOfOne(first, last, 5, {100});
}

TEST(WorkerService, RefusesHiddenStatesForAnotherIncarnation) {
  ServedWorker worker(2, 2, 4);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  ASSERT_OK_AND_ASSIGN(const auto sink, Connect(worker.address(), Incarnation(3)));
  const std::vector<float> row(64);
  absl::Status sent;
  for (int64_t i = 0; i < 200 && sent.ok(); ++i) {  // the refusal takes a moment to arrive
    sent = SendRows(*sink, i + 1, row, 64, Soon());
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_THAT(sent, StatusIs(absl::StatusCode::kAborted, HasSubstr("another worker")));
  EXPECT_FALSE(SendRows(*sink, 500, row, 64, Soon()).ok()) << "a stream that has ended stays so";
}

TEST(WorkerService, NoticesAWorkerThatIsLostWhileItSends) {
  auto worker = std::make_unique<ServedWorker>(2, 2, 4);
  ASSERT_OK(worker->BeginEpoch(1, nullptr));
  ASSERT_OK_AND_ASSIGN(const auto sink, Connect(worker->address(), Incarnation(2)));
  const std::vector<float> row(64);
  ASSERT_OK(SendRows(*sink, 1, row, 64, Soon()));
  worker.reset();
  absl::Status sent;
  for (int64_t i = 0; i < 200 && sent.ok(); ++i) {
    sent = SendRows(*sink, i + 2, row, 64, Soon());
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_FALSE(sent.ok());
}

// The queue of a worker that computes nothing holds one step of 256 rows; then gRPC's own buffers fill.
TEST(WorkerService, EndsASendToAWorkerThatTakesNothing) {
  ServedWorker worker(2, 2, 4);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  ASSERT_OK_AND_ASSIGN(const auto sink, Connect(worker.address(), Incarnation(2)));
  const std::vector<float> rows(256 * 64);
  absl::Status sent;
  for (uint64_t step = 1; step < 5000 && sent.ok(); ++step)
    sent = SendRows(*sink, step, rows, 64, Deadline::In(absl::Milliseconds(300)));
  EXPECT_THAT(sent, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(WorkerService, SharesMemoryBeforeTheFirstStepWithWhoeverMeansIt) {
  ServedWorker worker(2, 2, 4, true, /*share_memory=*/true);
  const auto share = [&](uint64_t epoch, uint64_t incarnation, const std::string& host) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::ShareActivationsRequest request;
    request.set_epoch(epoch);
    request.set_incarnation(incarnation);
    request.set_machine(host);
    internal::v1::ShareActivationsResponse response;
    const absl::Status status = FromGrpcStatus(worker.stub().ShareActivations(&context, request, &response));
    return status.ok() ? absl::StatusOr<std::string>(response.socket()) : status;
  };
  EXPECT_THAT(share(1, 2, MachineId()), StatusIs(absl::StatusCode::kAborted)) << "no epoch lasts";
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  EXPECT_THAT(share(2, 2, MachineId()), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is 2, want 1")));
  EXPECT_THAT(share(1, 9, MachineId()), StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 9")));
  EXPECT_EQ(share(1, 2, "elsewhere").value(), "");
  EXPECT_NE(share(1, 2, MachineId()).value(), "");
  EXPECT_NE(share(1, 2, MachineId()).value(), "") << "the last offer counts";
  EXPECT_EQ(share(1, 2, "").value(), "") << "taken back";
  Stream steps(worker);
  steps.Send(Request(1, 1, {1, 2}, /*timeout=*/0.05));
  EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kDeadlineExceeded) << "it waits for messages again";
  EXPECT_THAT(share(1, 2, MachineId()), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("had steps already")));
}

TEST(WorkerService, EndsAnEpochWhoseWorkerWaitsForTheNextOne) {
  ServedWorker first(1, 0, 2, true, true), last(2, 2, 4, true, true);
  ASSERT_OK(last.BeginEpoch(1, nullptr));
  ASSERT_OK(first.BeginEpoch(1, &last));
  Stream steps(first);  // the next worker is sent none, and takes nothing from the ring, which holds 256 rows
  const std::vector<int32_t> tokens = Tokens(Model(), 200);
  steps.Send(Request(1, 1, tokens));
  EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kOk);
  steps.Send(Request(1, 2, tokens));
  steps.Send(Request(1, 3, tokens));
  const Stopwatch before;
  ASSERT_OK(last.BeginEpoch(2, nullptr));
  ASSERT_OK(first.BeginEpoch(2, &last));
  EXPECT_LT(before.Elapsed(), absl::Seconds(5));
}

TEST(WorkerService, AStepDoesNotWaitForHiddenStatesOfASenderThatIsCutOff) {
  ServedWorker worker(2, 2, 4);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  Stream steps(worker);
  steps.Send(Request(1, 1, {1, 2}));
  steps.Send(Request(1, 2, {1, 2}));
  {
    ASSERT_OK_AND_ASSIGN(const auto sink, Connect(worker.address(), Incarnation(2)));
    ASSERT_OK(SendRows(*sink, 1, std::vector<float>(2 * 64), 64, Soon()));
    EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kOk);
  }
  const internal::v1::StepResponse cut_off = steps.Receive();
  EXPECT_EQ(CodeOf(cut_off), absl::StatusCode::kAborted);
  EXPECT_THAT(cut_off.message(), HasSubstr("the worker before this one cannot be reached"));
}

}  // namespace
}  // namespace ferry
