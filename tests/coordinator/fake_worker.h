#pragma once

// A worker that computes nothing: answers steps as a test says, by the stream or through rings of shared memory.

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/deadline.h"
#include "common/machine_id.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/message_ring.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "proto/stream_metadata.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

class FakeWorker final : public internal::v1::Worker::Service {
 public:
  // What to answer; nullopt: nothing, the worker hangs on this step.
  using Handler = std::function<std::optional<internal::v1::StepResponse>(const internal::v1::StepRequest&)>;

  explicit FakeWorker(Handler handler, bool offers_rings = false) : handler_(std::move(handler)), offers_rings_(offers_rings) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(folder_.address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeWorker() override {
    Kill();
    EndRings();
  }

  // The echo of a request: OK, with `logits` of all zeros for the rows that are wanted.
  static internal::v1::StepResponse Ok(const internal::v1::StepRequest& request, int64_t vocab_size) {
    internal::v1::StepResponse response;
    response.set_epoch(request.epoch());
    response.set_step(request.step());
    for (const internal::v1::StepSequence& sequence : request.sequences()) {
      for (const internal::v1::LogitsWanted& wanted : sequence.logits()) {
        internal::v1::LogitsRow* const row = response.add_logits();
        const bool whole = static_cast<int64_t>(wanted.top_n()) >= vocab_size;
        const int64_t count = whole ? vocab_size : wanted.top_n();
        row->set_logits(std::string(count * sizeof(float), '\0'));
        for (int64_t id = 0; !whole && id < count; ++id) row->add_ids(static_cast<uint32_t>(id));
      }
    }
    return response;
  }

  std::string address() const { return folder_.address(); }
  // Ends all calls at once, as a process that dies does.
  void Kill() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  std::vector<internal::v1::StepRequest> steps() {
    const std::lock_guard lock(mutex_);
    return steps_;
  }
  std::vector<internal::v1::BeginEpochRequest> epochs() {
    const std::lock_guard lock(mutex_);
    return epochs_;
  }
  bool asked_to_end() {
    const std::lock_guard lock(mutex_);
    return asked_to_end_;
  }

  grpc::Status BeginEpoch(grpc::ServerContext*, const internal::v1::BeginEpochRequest* request,
                          internal::v1::BeginEpochResponse* response) override {
    if (offers_rings_ && request->machine() == MachineId()) OfferRings(response);
    const std::lock_guard lock(mutex_);
    epochs_.push_back(*request);
    return grpc::Status::OK;
  }
  grpc::Status RunSteps(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<internal::v1::StepResponse, internal::v1::StepRequest>* stream) override {
    if (const auto key = context->client_metadata().find(kStepRingsKey); key != context->client_metadata().end()) {
      RunRings(std::string(key->second.data(), key->second.size()));
    }
    internal::v1::StepRequest request;
    while (stream->Read(&request)) {
      ++steps_by_stream_;
      const std::optional<internal::v1::StepResponse> response = Answer(request);
      if (response && !stream->Write(*response)) break;
    }
    return grpc::Status::OK;
  }
  int steps_by_stream() const { return steps_by_stream_; }
  // Writes bytes where the next answer is read.
  void SendRaw(std::string_view bytes) { ASSERT_OK(answers_->Write(bytes, Deadline::In(absl::Seconds(60)))); }
  grpc::Status Shutdown(grpc::ServerContext*, const internal::v1::ShutdownRequest*, internal::v1::ShutdownResponse*) override {
    const std::lock_guard lock(mutex_);
    asked_to_end_ = true;
    return grpc::Status::OK;
  }

 private:
  std::optional<internal::v1::StepResponse> Answer(const internal::v1::StepRequest& request) {
    {
      const std::lock_guard lock(mutex_);
      steps_.push_back(request);
    }
    return handler_(request);
  }
  void OfferRings(internal::v1::BeginEpochResponse* response) {
    EndRings();
    if (descriptors_ == nullptr)
      descriptors_ = DescriptorServer::Listen("ferry-fake-" + RandomDescriptorKey().substr(0, 16)).value();
    requests_ = MessageRing::Create().value();
    answers_ = MessageRing::Create().value();
    response->set_socket(descriptors_->name());
    response->set_key(RandomDescriptorKey());
    descriptors_->Offer(response->key(), {requests_->fd(), answers_->fd()});
    const std::lock_guard lock(mutex_);
    rings_key_ = response->key();
  }
  // The stream that names the rings' key has come.
  void RunRings(const std::string& key) {
    const std::lock_guard lock(mutex_);
    if (key != rings_key_ || through_rings_.joinable()) return;
    through_rings_ = std::thread([this] {
      while (true) {
        const absl::StatusOr<std::string> message = requests_->Read(Deadline::Never());
        internal::v1::StepRequest request;
        if (!message.ok() || !request.ParseFromString(*message)) return;
        const std::optional<internal::v1::StepResponse> answer = Answer(request);
        if (answer && !answers_->Write(answer->SerializeAsString(), Deadline::In(absl::Seconds(60))).ok()) return;
      }
    });
  }
  void EndRings() {
    {
      const std::lock_guard lock(mutex_);
      rings_key_.clear();
    }
    if (!through_rings_.joinable()) return;
    requests_->Abort();
    answers_->Abort();
    through_rings_.join();
  }

  const SocketFolder folder_;
  const Handler handler_;
  const bool offers_rings_;
  std::atomic<int> steps_by_stream_ = 0;
  std::unique_ptr<DescriptorServer> descriptors_;
  std::unique_ptr<MessageRing> requests_, answers_;
  std::string rings_key_;  // guarded by mutex_
  std::thread through_rings_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::vector<internal::v1::StepRequest> steps_;
  std::vector<internal::v1::BeginEpochRequest> epochs_;
  bool asked_to_end_ = false;
};

}  // namespace ferry
