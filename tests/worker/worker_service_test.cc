// Two workers' services on loopback, joined by gRPC: what the coordinator and a neighbour see of a worker.

#include "worker/worker_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cmath>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/host_id.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/message_ring.h"
#include "proto/stream_metadata.h"
#include "tests/testing/socket_folder.h"
#include "tests/worker/send_rows.h"
#include "tests/worker/tiny_model.h"
#include "worker/agent.h"
#include "worker/next_worker.h"
#include "worker/server_limits.h"

namespace ferry {
namespace {

using testing::HasSubstr;

Deadline Soon() { return Deadline::In(absl::Seconds(60)); }

const TinyModel& Model() {
  static const auto* const model = TinyModel::Make().release();
  return *model;
}

template <typename Condition>
bool Eventually(const Condition& condition) {
  for (const Deadline end = Soon(); !end.Passed(); absl::SleepFor(absl::Milliseconds(5))) {
    if (condition()) return true;
  }
  return false;
}

// A worker process without a process: layers [first, end) behind a real server.
class ServedWorker {
 public:
  ServedWorker(uint64_t incarnation, int64_t first, int64_t end, bool loaded = true, bool share_memory = false)
      : incarnation_(incarnation), service_(Incarnation(incarnation), [this](const absl::Status&) { shut_down_ = true; }) {
    FileTensorSource source(Model(), first, end);
    stage_ = Stage::Create(ops_.get(), TinyStageOptions(Model(), first, end), source, &link_).value();
    runner_ = StepRunner::Create(stage_.get(), &queue_).value();
    if (loaded) {
      service_.Attach(runner_.get(), &queue_,
                      {.ops = ops_.get(), .n_embd = Model().config.n_embd, .max_rows = 256, .share_memory = share_memory});
    }
    grpc::ServerBuilder builder;
    SetServerLimits(builder);
    builder.AddListeningPort(folder_.address(), grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    address_ = folder_.address();
    stub_ = internal::v1::Worker::NewStub(ConnectPeer(address_, NodeRole::kWorker, nullptr, {.quick_reconnects = true}));
  }
  ~ServedWorker() { server_->Shutdown(RpcDeadline(absl::ZeroDuration())); }

  internal::v1::Worker::Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }
  bool shut_down() const { return shut_down_; }
  uint64_t incarnation() const { return incarnation_; }

  // Begins an epoch as a coordinator on `host` does.
  internal::v1::BeginEpochResponse BeginEpochFrom(const std::string& host, uint64_t epoch) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::BeginEpochRequest request;
    request.set_epoch(epoch);
    request.set_incarnation(incarnation_);
    request.set_host(host);
    internal::v1::BeginEpochResponse response;
    EXPECT_OK(FromGrpcStatus(stub_->BeginEpoch(&context, request, &response)));
    return response;
  }
  absl::Status BeginEpoch(uint64_t epoch, const ServedWorker* next, uint64_t incarnation = 0) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::BeginEpochRequest request;
    request.set_epoch(epoch);
    request.set_incarnation(incarnation != 0 ? incarnation : incarnation_);
    if (next != nullptr) {
      request.set_next_address(next->address_);
      request.set_next_incarnation(next->incarnation_);
    }
    internal::v1::BeginEpochResponse response;
    return FromGrpcStatus(stub_->BeginEpoch(&context, request, &response));
  }

 private:
  const uint64_t incarnation_;
  std::unique_ptr<Ops> ops_ = MakeOps(), host_ops_ = MakeOps();
  FakeLink link_{&Model(), host_ops_.get()};
  std::unique_ptr<Stage> stage_;
  ActivationQueue queue_{Model().config.n_embd, 256};
  std::unique_ptr<StepRunner> runner_;
  std::atomic<bool> shut_down_{false};
  WorkerService service_;
  const SocketFolder folder_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Worker::Stub> stub_;
};

internal::v1::StepRequest Request(uint64_t epoch, uint64_t step, const std::vector<int32_t>& tokens, double timeout = 20) {
  internal::v1::StepRequest request;
  request.set_epoch(epoch);
  request.set_step(step);
  request.set_timeout_seconds(timeout);
  internal::v1::StepSequence* const sequence = request.add_sequences();
  sequence->set_num_tokens(tokens.size());
  sequence->mutable_token_ids()->Assign(tokens.begin(), tokens.end());
  for (size_t block = 0; block * kKvBlockTokens < tokens.size(); ++block) sequence->add_blocks(block * kTinySlots);
  sequence->add_logits()->set_offset(tokens.size() - 1);
  sequence->mutable_logits(0)->set_top_n(UINT32_MAX);
  return request;
}

// A RunSteps stream to one worker.
class Stream {
 public:
  explicit Stream(ServedWorker& worker, const std::string& rings_key = "") {
    context_.set_deadline(RpcDeadline(Soon()));
    context_.AddMetadata(kIncarnationKey, std::to_string(worker.incarnation()));
    if (!rings_key.empty()) context_.AddMetadata(kStepRingsKey, rings_key);
    stream_ = worker.stub().RunSteps(&context_);
  }
  ~Stream() {
    if (ended_) return;
    context_.TryCancel();
    stream_->Finish();
  }
  void Send(const internal::v1::StepRequest& request) { EXPECT_TRUE(stream_->Write(request)); }
  internal::v1::StepResponse Receive() {
    internal::v1::StepResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    return response;
  }
  absl::Status End() {
    ended_ = true;
    stream_->WritesDone();
    internal::v1::StepResponse response;
    while (stream_->Read(&response)) ++answers_after_end;
    return FromGrpcStatus(stream_->Finish());
  }
  int answers_after_end = 0;

 private:
  bool ended_ = false;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<internal::v1::StepRequest, internal::v1::StepResponse>> stream_;
};

absl::StatusCode CodeOf(const internal::v1::StepResponse& response) { return static_cast<absl::StatusCode>(response.code()); }

StageLinkOptions ByMessages() { return {.n_embd = 64}; }

class TwoWorkers : public testing::TestWithParam<std::tuple<bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(Sharing, TwoWorkers, testing::Combine(testing::Bool(), testing::Bool()));

TEST_P(TwoWorkers, GiveTheLogitsOfOneWhicheverOfThemSharesMemory) {
  ServedWorker first(1, 0, 2, true, std::get<0>(GetParam())), last(2, 2, 4, true, std::get<1>(GetParam()));
  ASSERT_OK(last.BeginEpoch(5, nullptr));
  ASSERT_OK(first.BeginEpoch(5, &last));
  const std::vector<int32_t> tokens = Tokens(Model(), 100);
  Stream to_first(first), to_last(last);
  to_first.Send(Request(5, 1, tokens));
  to_last.Send(Request(5, 1, tokens));
  const internal::v1::StepResponse middle = to_first.Receive(), end = to_last.Receive();
  EXPECT_EQ(CodeOf(middle), absl::StatusCode::kOk) << middle.message();
  EXPECT_EQ(middle.logits_size(), 0);
  ASSERT_EQ(CodeOf(end), absl::StatusCode::kOk) << end.message();
  TinyPipeline alone(&Model(), 1);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, alone.Prompt(tokens));
  EXPECT_EQ(end.logits(0).logits(), std::string(reinterpret_cast<const char*>(expected.data()), expected.size() * sizeof(float)));
  EXPECT_EQ(end.logits(0).ids_size(), 0) << "the whole vocabulary needs no ids";
}

TEST(WorkerService, EndsAStreamAfterItsLastAnswer) {
  ServedWorker worker(1, 0, 4);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  Stream stream(worker);
  stream.Send(Request(1, 1, {1, 2}));
  stream.Send(Request(1, 2, {1, 2}));
  EXPECT_OK(stream.End());
  EXPECT_EQ(stream.answers_after_end, 2);
}

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

// The coordinator's ends of the rings that a worker offered.
class Rings {
 public:
  explicit Rings(const internal::v1::BeginEpochResponse& offer) : key_(offer.key()) {
    std::vector<UniqueFd> descriptors = FetchDescriptors(offer.socket(), offer.key(), Soon()).value();
    steps_ = MessageRing::Map(descriptors.at(0).Release()).value();
    answers_ = MessageRing::Map(descriptors.at(1).Release()).value();
  }
  void Send(const std::string& message) { ASSERT_OK(steps_->Write(message, Soon())); }
  internal::v1::StepResponse Receive() {
    internal::v1::StepResponse response;
    EXPECT_TRUE(response.ParseFromString(answers_->Read(Soon()).value()));
    return response;
  }
  absl::Status NothingComes() { return answers_->Read(Deadline::In(absl::Milliseconds(50))).status(); }

  const std::string& key() const { return key_; }

 private:
  const std::string key_;
  std::unique_ptr<MessageRing> steps_, answers_;
};

TEST(WorkerService, AnswersTheSameThroughSharedMemory) {
  ServedWorker worker(1, 0, 4, /*loaded=*/true, /*share_memory=*/true);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  internal::v1::StepResponse by_stream;
  {
    Stream stream(worker);
    stream.Send(Request(1, 1, {3, 4, 5}));
    by_stream = stream.Receive();
  }
  Rings rings(worker.BeginEpochFrom(HostId(), 2));
  Stream life(worker, rings.key());
  rings.Send(Request(2, 1, {3, 4, 5}).SerializeAsString());
  const internal::v1::StepResponse through_rings = rings.Receive();
  ASSERT_EQ(through_rings.logits_size(), 1);
  EXPECT_EQ(through_rings.logits(0).logits(), by_stream.logits(0).logits());
  EXPECT_OK(life.End());
}

TEST(WorkerService, OffersSharedMemoryToItsOwnHostAlone) {
  ServedWorker sharing(1, 0, 4, true, true), not_sharing(2, 0, 4);
  EXPECT_FALSE(sharing.BeginEpochFrom(HostId(), 1).socket().empty());
  EXPECT_TRUE(sharing.BeginEpochFrom("another", 2).socket().empty());
  EXPECT_TRUE(not_sharing.BeginEpochFrom(HostId(), 1).socket().empty());
}

TEST(WorkerService, RunsNothingFromTheRingsOfAnEarlierEpoch) {
  ServedWorker worker(1, 0, 4, true, true);
  Rings old(worker.BeginEpochFrom(HostId(), 1));
  Stream old_life(worker, old.key());
  old.Send(Request(1, 1, {3}).SerializeAsString());
  old.Receive();
  Rings rings(worker.BeginEpochFrom(HostId(), 2));
  Stream late(worker, old.key());  // that arrives after the next epoch has begun takes nothing of it
  Stream life(worker, rings.key());
  old.Send(Request(1, 2, {3}).SerializeAsString());
  EXPECT_EQ(CodeOf(old.Receive()), absl::StatusCode::kAborted);
  rings.Send(Request(2, 1, {3}).SerializeAsString());
  EXPECT_EQ(CodeOf(rings.Receive()), absl::StatusCode::kOk);
}

TEST(WorkerService, BytesThatAreNoStepAreAnsweredWithWhatEndsTheEpoch) {
  ServedWorker worker(1, 0, 4, true, true);
  Rings rings(worker.BeginEpochFrom(HostId(), 1));
  Stream life(worker, rings.key());
  rings.Send("\xff\xff\xff");
  const internal::v1::StepResponse refusal = rings.Receive();
  EXPECT_EQ(refusal.step(), 0u) << "there is no step 0";
  EXPECT_EQ(CodeOf(refusal), absl::StatusCode::kInternal);
  EXPECT_THAT(rings.NothingComes(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_OK(life.End());
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
  const auto sink = ConnectNextWorker(address, Incarnation(2), 1, ByMessages(), Deadline::In(absl::Milliseconds(300)));
  EXPECT_THAT(sink, StatusIs(absl::StatusCode::kUnavailable, HasSubstr(address)));
}

TEST(WorkerService, RefusesHiddenStatesForAnotherIncarnation) {
  ServedWorker worker(2, 2, 4);
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  ASSERT_OK_AND_ASSIGN(const auto sink, ConnectNextWorker(worker.address(), Incarnation(3), 1, ByMessages(), Soon()));
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
  ASSERT_OK_AND_ASSIGN(const auto sink, ConnectNextWorker(worker->address(), Incarnation(2), 1, ByMessages(), Soon()));
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
  ASSERT_OK_AND_ASSIGN(const auto sink, ConnectNextWorker(worker.address(), Incarnation(2), 1, ByMessages(), Soon()));
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
    request.set_host(host);
    internal::v1::ShareActivationsResponse response;
    const absl::Status status = FromGrpcStatus(worker.stub().ShareActivations(&context, request, &response));
    return status.ok() ? absl::StatusOr<std::string>(response.socket()) : status;
  };
  EXPECT_THAT(share(1, 2, HostId()), StatusIs(absl::StatusCode::kAborted)) << "no epoch lasts";
  ASSERT_OK(worker.BeginEpoch(1, nullptr));
  EXPECT_THAT(share(2, 2, HostId()), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is 2, want 1")));
  EXPECT_THAT(share(1, 9, HostId()), StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 9")));
  EXPECT_EQ(share(1, 2, "elsewhere").value(), "");
  EXPECT_NE(share(1, 2, HostId()).value(), "");
  EXPECT_NE(share(1, 2, HostId()).value(), "") << "the last offer counts";
  EXPECT_EQ(share(1, 2, "").value(), "") << "taken back";
  Stream steps(worker);
  steps.Send(Request(1, 1, {1, 2}, /*timeout=*/0.05));
  EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kDeadlineExceeded) << "it waits for messages again";
  EXPECT_THAT(share(1, 2, HostId()), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("had steps already")));
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
    ASSERT_OK_AND_ASSIGN(const auto sink, ConnectNextWorker(worker.address(), Incarnation(2), 1, ByMessages(), Soon()));
    ASSERT_OK(SendRows(*sink, 1, std::vector<float>(2 * 64), 64, Soon()));
    EXPECT_EQ(CodeOf(steps.Receive()), absl::StatusCode::kOk);
  }
  const internal::v1::StepResponse cut_off = steps.Receive();
  EXPECT_EQ(CodeOf(cut_off), absl::StatusCode::kAborted);
  EXPECT_THAT(cut_off.message(), HasSubstr("the worker before this one cannot be reached"));
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

TEST(WorkerService, RefusesStreamsWithoutNumber) {
  ServedWorker worker(7, 0, 4);
  std::vector<std::unique_ptr<Stream>> open;
  for (int i = 0; i < 4; ++i) open.push_back(std::make_unique<Stream>(worker));
  EXPECT_TRUE(Eventually([&] {  // the first four may be slow to arrive
    Stream another(worker);
    return another.End().code() == absl::StatusCode::kResourceExhausted;
  }));
}

// ------------------------------------------------------------------------------------------------------------------ agent

class FakeCoordinator final : public internal::v1::Cluster::Service {
 public:
  FakeCoordinator() { Start(); }
  ~FakeCoordinator() override { Stop(); }
  void Start() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(folder_.address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    stub_ = internal::v1::Cluster::NewStub(
        ConnectPeer(folder_.address(), NodeRole::kCoordinator, nullptr, {.quick_reconnects = true}));
  }
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(RpcDeadline(absl::ZeroDuration()));
    server_.reset();
  }
  internal::v1::Cluster::StubInterface* stub() { return stub_.get(); }

  grpc::Status Register(grpc::ServerContext*, const internal::v1::RegisterRequest*,
                        internal::v1::RegisterResponse* response) override {
    if (full) return ToGrpcStatus(FailedPrecondition("the cluster is complete"));
    if (loading-- > 0) return ToGrpcStatus(Unavailable("the coordinator is loading the experts: 12 %%"));
    response->set_worker_id(3);
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const internal::v1::HeartbeatRequest* request,
                         internal::v1::HeartbeatResponse*) override {
    ++heartbeats;
    if (request->incarnation() != 5 || request->worker_id() != 3 || request->state() != "ready") ++wrong;
    if (refuse) return ToGrpcStatus(Aborted("that incarnation is over"));
    return grpc::Status::OK;
  }
  std::atomic<int> loading{0}, heartbeats{0}, wrong{0};
  std::atomic<bool> full{false}, refuse{false};

 private:
  const SocketFolder folder_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Cluster::Stub> stub_;
};

TEST(Agent, WaitsForACoordinatorThatIsStillLoading) {
  FakeCoordinator coordinator;
  coordinator.loading = 2;
  ASSERT_OK_AND_ASSIGN(const internal::v1::RegisterResponse response,
                       Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Milliseconds(1), nullptr));
  EXPECT_EQ(response.worker_id(), 3u);
}

TEST(Agent, TakesARefusalForAnAnswer) {
  FakeCoordinator coordinator;
  coordinator.full = true;
  EXPECT_THAT(Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Seconds(60), nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("complete")));
}

TEST(Agent, GivesUpACoordinatorThatCannotBeReached) {
  FakeCoordinator coordinator;
  coordinator.Stop();
  EXPECT_THAT(Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Milliseconds(300), nullptr),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Seconds(60), [] { return true; }),
              StatusIs(absl::StatusCode::kCancelled));
}

class HeartbeatTest : public testing::Test {
 protected:
  std::unique_ptr<Agent> Beat(absl::Duration timeout, bool same_host) {
    return Agent::Start(
               coordinator_.stub(),
               Agent::Options{.worker_id = 3,
                              .incarnation = Incarnation(5),
                              .interval = absl::Milliseconds(10),
                              .timeout = timeout,
                              .same_host = same_host},
               [](internal::v1::HeartbeatRequest* request) { request->set_state("ready"); },
               [this](const absl::Status& why) {
                 lost_because_ = why;
                 lost_ = true;
               })
        .value();
  }
  FakeCoordinator coordinator_;
  absl::Status lost_because_;
  std::atomic<bool> lost_{false};
};

TEST_F(HeartbeatTest, GoesOnWhileTheCoordinatorAnswers) {
  const auto agent = Beat(absl::Seconds(10), true);
  EXPECT_TRUE(Eventually([&] { return coordinator_.heartbeats >= 5; }));
  EXPECT_EQ(coordinator_.wrong, 0);
  EXPECT_FALSE(lost_);
}

TEST_F(HeartbeatTest, EndsWhenTheWorkerIsNotWantedAnyMore) {
  coordinator_.refuse = true;
  const auto agent = Beat(absl::Hours(1), false);
  EXPECT_TRUE(Eventually([&] { return lost_.load(); }));
  EXPECT_THAT(lost_because_, StatusIs(absl::StatusCode::kAborted, HasSubstr("the coordinator is lost")));
}

TEST_F(HeartbeatTest, EndsWhenTheCoordinatorIsGoneForTooLong) {
  const auto agent = Beat(absl::Milliseconds(300), false);
  EXPECT_TRUE(Eventually([&] { return coordinator_.heartbeats >= 1; }));
  coordinator_.Stop();
  EXPECT_TRUE(Eventually([&] { return lost_.load(); }));
}

TEST_F(HeartbeatTest, EndsSoonWhenACoordinatorOfThisHostIsGone) {
  const auto agent = Beat(absl::Hours(1), true);
  EXPECT_TRUE(Eventually([&] { return coordinator_.heartbeats >= 1; }));
  coordinator_.Stop();
  EXPECT_TRUE(Eventually([&] { return lost_.load(); })) << "within two seconds and a little";
}

}  // namespace
}  // namespace ferry
