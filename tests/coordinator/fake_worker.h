#pragma once

// A worker that computes nothing: answers steps as a test says.

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ferry/v1/worker.grpc.pb.h"

namespace ferry {

class FakeWorker final : public v1::Worker::Service {
 public:
  // What to answer; nullopt: nothing, the worker hangs on this step.
  using Handler = std::function<std::optional<v1::StepResponse>(const v1::StepRequest&)>;

  explicit FakeWorker(Handler handler) : handler_(std::move(handler)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeWorker() override { Kill(); }

  // The echo of a request: OK, with `logits` of all zeros for the rows that are wanted.
  static v1::StepResponse Ok(const v1::StepRequest& request, int64_t vocab_size) {
    v1::StepResponse response;
    response.set_epoch(request.epoch());
    response.set_step(request.step());
    for (const v1::StepSequence& sequence : request.sequences()) {
      for (const v1::LogitsWanted& wanted : sequence.logits()) {
        v1::LogitsRow* const row = response.add_logits();
        const bool whole = static_cast<int64_t>(wanted.top_n()) >= vocab_size;
        const int64_t count = whole ? vocab_size : wanted.top_n();
        row->set_logits(std::string(count * sizeof(float), '\0'));
        for (int64_t id = 0; !whole && id < count; ++id) row->add_ids(static_cast<uint32_t>(id));
      }
    }
    return response;
  }

  const std::string& address() const { return address_; }
  // Ends all calls at once, as a process that dies does.
  void Kill() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  std::vector<v1::StepRequest> steps() {
    const std::lock_guard lock(mutex_);
    return steps_;
  }
  std::vector<v1::BeginEpochRequest> epochs() {
    const std::lock_guard lock(mutex_);
    return epochs_;
  }
  bool asked_to_end() {
    const std::lock_guard lock(mutex_);
    return asked_to_end_;
  }

  grpc::Status BeginEpoch(grpc::ServerContext*, const v1::BeginEpochRequest* request,
                          v1::BeginEpochResponse*) override {
    const std::lock_guard lock(mutex_);
    epochs_.push_back(*request);
    return grpc::Status::OK;
  }
  grpc::Status RunSteps(grpc::ServerContext*,
                        grpc::ServerReaderWriter<v1::StepResponse, v1::StepRequest>* stream) override {
    v1::StepRequest request;
    while (stream->Read(&request)) {
      {
        const std::lock_guard lock(mutex_);
        steps_.push_back(request);
      }
      const std::optional<v1::StepResponse> response = handler_(request);
      if (response && !stream->Write(*response)) break;
    }
    return grpc::Status::OK;
  }
  grpc::Status Shutdown(grpc::ServerContext*, const v1::ShutdownRequest*, v1::ShutdownResponse*) override {
    const std::lock_guard lock(mutex_);
    asked_to_end_ = true;
    return grpc::Status::OK;
  }

 private:
  const Handler handler_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::mutex mutex_;
  std::vector<v1::StepRequest> steps_;
  std::vector<v1::BeginEpochRequest> epochs_;
  bool asked_to_end_ = false;
};

}  // namespace ferry
