#pragma once

// The stream of one Generate call, with one output or more: answers wait here while an earlier one is on its way, so the
// generation never waits for its client. What waits is bounded in bytes, and in time by GiveUpSlowReader. Lives until gRPC and
// the generation have both let go of it.

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/access/key_usage.h"
#include "common/clock.h"
#include "coordinator/generation/generation_loop.h"
#include "coordinator/generation/open_calls.h"
#include "coordinator/generation/request.h"
#include "ferry/v1/activity.pb.h"

namespace ferry {

// The messages of one Generate call: those of ferry.v1, or another API's. Called by one thread at a time.
class GenerateMessages {
 public:
  virtual ~GenerateMessages() = default;
  // InvalidArgument names the field.
  virtual absl::Status Parse(const grpc::ByteBuffer& message, v1::GenerateRequest* request) = 0;
  // Appends the messages that tell `response`.
  virtual absl::Status Write(const v1::GenerateResponse& response, std::vector<grpc::ByteBuffer>* messages) = 0;
};

class GenerateStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  struct Options {
    GenerationLoop* loop = nullptr;
    const Clock* clock = nullptr;
    int64_t max_unsent_bytes = 0;
    std::shared_ptr<KeyUsage> usage;
    std::shared_ptr<OpenCalls> open_calls;
    std::shared_ptr<GenerateMessages> messages;
  };
  GenerateStream(Options options, grpc::CallbackServerContext* context);
  ~GenerateStream() override;

  void HoldForCall(std::shared_ptr<GenerateStream> self) { self_ = std::move(self); }
  // Counts it among the open calls. ResourceExhausted: they are too many.
  absl::Status TakePlace();
  // Names the caller, once it is known.
  void SetCaller(const Principal& caller);
  // Counts `num` requests of the caller until the call ends. ResourceExhausted: a limit of the key.
  absl::Status CountRequests(int64_t num);
  void SetRequestId(std::string request_id);
  // Ends the call as if its client had cancelled it, if its id is one of these and `caller` may end it; whether that is so.
  bool Abort(const std::set<std::string_view>& request_ids, const Principal& caller);
  // Where the answers of the output `index` of `stream` go.
  static std::shared_ptr<GenerationSink> SinkOf(std::shared_ptr<GenerateStream> stream, uint32_t index);
  // Hands the outputs to the loop, unless the call was cancelled already. The call ends with the last of them, or with the first
  // that fails. There is one at least.
  void Submit(std::vector<std::shared_ptr<Generation>> outputs);
  bool cancelled() const;

  // Ends the call without outputs.
  void Close(const absl::Status& status);
  // What an operator sees of the call; nothing: it has ended.
  std::optional<v1::RunningRequest> Describe() const;
  // Ends the call when its client has taken nothing of what waits since `before`.
  void GiveUpSlowReader(absl::Time before);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class Sink;
  void Send(uint32_t index, v1::GenerateResponse response);
  void OnProgress(int64_t cached, int64_t done);
  void CloseOutput(const absl::Status& status);
  void FinishIfDoneLocked();
  void WriteFrontLocked();
  // Makes gRPC end the call, which OnCancel then hears. Without mutex_: gRPC may call back from within.
  void TryCancel();
  void Audit() const;

  const Options options_;
  const absl::Time begun_;
  const std::string peer_;
  bool has_place_ = false;                // among the open calls
  std::shared_ptr<GenerateStream> self_;  // while gRPC uses it
  std::mutex context_mutex_;
  grpc::CallbackServerContext* context_;  // guarded by context_mutex_; null once gRPC is done with it

  mutable std::mutex mutex_;
  Principal caller_;
  int64_t counted_ = 0;  // by KeyUsage
  std::string request_id_;
  std::vector<std::shared_ptr<Generation>> outputs_;
  size_t outputs_left_ = 0;
  std::deque<grpc::ByteBuffer> queue_;  // the front one is being written
  int64_t queued_bytes_ = 0;
  absl::Time progress_;              // when the client last took something, or the queue began
  std::optional<absl::Status> end_;  // what the call ends with, once the queue is empty
  bool cancelled_ = false;
  bool finished_ = false;
  // Of the first output; generated tokens of all.
  int64_t prompt_tokens_ = 0, cached_tokens_ = 0, computed_tokens_ = 0, generated_tokens_ = 0;
  v1::Finish finish_;
};

}  // namespace ferry
