#pragma once

// A worker's service on loopback without a process, and a stream of steps to it, as the coordinator and a neighbour see them.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/rpc/rpc_deadline.h"
#include "proto/stream_metadata.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/soon.h"
#include "tests/worker/tiny_model.h"
#include "worker/activation_listener.h"
#include "worker/server_limits.h"
#include "worker/worker_service.h"

namespace ferry {

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
  ServedWorker(uint64_t incarnation, int64_t first, int64_t end, bool loaded = true, bool share_memory = false,
               const StageLinkOptions& links = {})
      : incarnation_(incarnation), service_(Incarnation(incarnation), [this](const absl::Status&) { shut_down_ = true; }) {
    FileTensorSource source(Model(), first, end);
    stage_ = Stage::Create(ops_.get(), TinyStageOptions(Model(), first, end), source, &link_).value();
    runner_ = StepRunner::Create(stage_.get(), &queue_).value();
    if (loaded) {
      StageLinkOptions own = links;
      own.ops = ops_.get();
      own.n_embd = Model().config.n_embd;
      own.max_rows = 256;
      own.share_memory = share_memory;
      own.listener = &listener_;
      service_.Attach(runner_.get(), &queue_, own);
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
  v1::HiddenStatesLink link() const { return service_.hidden_states(); }
  uint64_t incarnation() const { return incarnation_; }

  // Begins an epoch as a coordinator on `host` does.
  internal::v1::BeginEpochResponse BeginEpochFrom(const std::string& host, uint64_t epoch) {
    grpc::ClientContext context;
    context.set_deadline(RpcDeadline(Soon()));
    internal::v1::BeginEpochRequest request;
    request.set_epoch(epoch);
    request.set_incarnation(incarnation_);
    request.set_machine(host);
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
  const SocketFolder folder_;
  ActivationListener listener_{{.loopback = true, .unix_path = folder_.path() + "/data"}, {}};
  std::unique_ptr<StepRunner> runner_;
  std::atomic<bool> shut_down_{false};
  WorkerService service_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Worker::Stub> stub_;
};

inline internal::v1::StepRequest Request(uint64_t epoch, uint64_t step, const std::vector<int32_t>& tokens, double timeout = 20) {
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

inline absl::StatusCode CodeOf(const internal::v1::StepResponse& response) {
  return static_cast<absl::StatusCode>(response.code());
}

// Prompts of these lengths, a step each, that go through two workers in `epoch` give the logits of one worker.
inline void ExpectTheLogitsOfOne(ServedWorker& first, ServedWorker& last, uint64_t epoch, const std::vector<size_t>& lengths) {
  Stream to_first(first), to_last(last);
  uint64_t step = 0;
  for (const size_t length : lengths) {
    const std::vector<int32_t> tokens = Tokens(Model(), length);
    to_first.Send(Request(epoch, ++step, tokens));
    to_last.Send(Request(epoch, step, tokens));
    const internal::v1::StepResponse middle = to_first.Receive(), end = to_last.Receive();
    ASSERT_EQ(CodeOf(middle), absl::StatusCode::kOk) << middle.message();
    EXPECT_EQ(middle.logits_size(), 0);
    ASSERT_EQ(CodeOf(end), absl::StatusCode::kOk) << end.message();
    TinyPipeline alone(&Model(), 1);
    ASSERT_OK_AND_ASSIGN(const std::vector<float> expected, alone.Prompt(tokens));
    EXPECT_EQ(end.logits(0).logits(),
              std::string(reinterpret_cast<const char*>(expected.data()), expected.size() * sizeof(float)));
    EXPECT_EQ(end.logits(0).ids_size(), 0) << "the whole vocabulary needs no ids";
  }
}

}  // namespace ferry
