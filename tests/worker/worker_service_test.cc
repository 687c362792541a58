// Epochs, pings, probes and the end of a worker, as the coordinator asks for them.

#include "worker/worker_service.h"

#include <grpcpp/grpcpp.h>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/machine_id.h"
#include "common/rpc/rpc_deadline.h"
#include "proto/stream_metadata.h"
#include "tests/testing/soon.h"
#include "tests/worker/served_worker.h"
#include "worker/next_worker.h"

namespace ferry {
namespace {

using testing::HasSubstr;

TEST(WorkerService, RefusesAnEpochForAnotherIncarnation) {
  ServedWorker worker(1, 0, 4);
  EXPECT_THAT(worker.BeginEpoch(1, nullptr, /*incarnation=*/9),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 9")));
}

TEST(WorkerService, RefusesEverythingWhileItLoads) {
  ServedWorker worker(1, 0, 4, /*loaded=*/false);
  EXPECT_THAT(worker.BeginEpoch(1, nullptr), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("loading")));
}

TEST(WorkerService, ProbesTheLinkForWhoeverMeansIt) {
  ServedWorker worker(1, 0, 4);
  const auto probe = [&](uint64_t incarnation, double seconds) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::ProbeLinkRequest request;
    request.set_incarnation(incarnation);
    request.set_seconds(seconds);
    internal::v1::ProbeLinkResponse response;
    return FromGrpcStatus(worker.stub().ProbeLink(&context, request, &response));
  };
  EXPECT_OK(probe(1, 0.01));
  EXPECT_THAT(probe(2, 0.01), StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 2")));
  for (const double seconds : {0.0, -1.0, 5.1, std::nan("")}) {
    EXPECT_THAT(probe(1, seconds), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("seconds is"))) << seconds;
  }
}

TEST(WorkerService, OffersSharedMemoryToItsOwnHostAlone) {
  ServedWorker sharing(1, 0, 4, true, true), not_sharing(2, 0, 4);
  EXPECT_FALSE(sharing.BeginEpochFrom(MachineId(), 1).socket().empty());
  EXPECT_TRUE(sharing.BeginEpochFrom("another", 2).socket().empty());
  EXPECT_TRUE(not_sharing.BeginEpochFrom(MachineId(), 1).socket().empty());
}

TEST(WorkerService, AnswersAPingToWhoeverMeansIt) {
  ServedWorker worker(1, 0, 4);
  const auto ping = [&](uint64_t incarnation) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::PingRequest request;
    request.set_incarnation(incarnation);
    internal::v1::PingResponse response;
    return FromGrpcStatus(worker.stub().Ping(&context, request, &response));
  };
  EXPECT_OK(ping(1));
  EXPECT_THAT(ping(2), StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 2")));
}

TEST(WorkerService, SaysThatItsSuccessorDoesNotAnswer) {
  ServedWorker worker(1, 0, 2);
  std::unique_ptr<ServedWorker> gone = std::make_unique<ServedWorker>(2, 2, 4);
  ServedWorker* const next = gone.get();
  const std::string address = next->address();
  gone.reset();
  NextWorker connector;
  const auto sink = connector.Connect(address, Incarnation(2), /*epoch=*/1, {.n_embd = 64}, /*runner=*/nullptr,
                                      Deadline::In(absl::Milliseconds(300)));
  EXPECT_THAT(sink, StatusIs(absl::StatusCode::kUnavailable, HasSubstr(address)));
}

TEST(WorkerService, ShutsDownWhenAsked) {
  ServedWorker worker(1, 0, 4);
  grpc::ClientContext context;
  internal::v1::ShutdownResponse response;
  EXPECT_FALSE(worker.stub().Shutdown(&context, internal::v1::ShutdownRequest(), &response).ok());
  EXPECT_FALSE(worker.shut_down()) << "the request names no worker";
  grpc::ClientContext meant;
  meant.AddMetadata(kIncarnationKey, "1");
  EXPECT_OK(FromGrpcStatus(worker.stub().Shutdown(&meant, internal::v1::ShutdownRequest(), &response)));
  EXPECT_TRUE(worker.shut_down());
}

TEST(WorkerService, ObeysOnlyWhomItsIncarnationWasTold) {
  ServedWorker worker(7, 0, 4);
  const auto aborted = StatusIs(absl::StatusCode::kAborted);
  const auto call = [&](auto method, auto request, auto response) {
    request.set_incarnation(8);
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    return FromGrpcStatus((worker.stub().*method)(&context, request, &response));
  };
  using Stub = internal::v1::Worker::Stub;
  EXPECT_THAT(call(&Stub::BeginEpoch, internal::v1::BeginEpochRequest(), internal::v1::BeginEpochResponse()), aborted);
  EXPECT_THAT(call(&Stub::Ping, internal::v1::PingRequest(), internal::v1::PingResponse()), aborted);
  EXPECT_THAT(call(&Stub::ProbeLink, internal::v1::ProbeLinkRequest(), internal::v1::ProbeLinkResponse()), aborted);
  EXPECT_FALSE(worker.shut_down());
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(Soon()));
  const auto stream = worker.stub().RunSteps(&context);  // names no incarnation
  EXPECT_THAT(FromGrpcStatus(stream->Finish()), aborted);
}

TEST(WorkerService, RefusesAnEpochAfterWhichNoneCouldBegin) {
  ServedWorker worker(7, 0, 4);
  for (const uint64_t epoch : {uint64_t{0}, UINT64_MAX}) {
    grpc::ClientContext context;
    internal::v1::BeginEpochRequest request;
    request.set_incarnation(7);
    request.set_epoch(epoch);
    internal::v1::BeginEpochResponse response;
    EXPECT_THAT(FromGrpcStatus(worker.stub().BeginEpoch(&context, request, &response)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("epoch")));
  }
}

}  // namespace
}  // namespace ferry
