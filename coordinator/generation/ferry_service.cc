#include "coordinator/generation/ferry_service.h"

#include <deque>
#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "common/grpc_status.h"

namespace ferry {
namespace {

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// The deadline of a call on `clock`, whose date need not be the system's.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context, const Clock& clock) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return clock.Now() + absl::FromChrono(deadline - std::chrono::system_clock::now());
}

uint64_t RandomSeed() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

// The stream of one Generate call. Messages are queued here while an earlier one is on its way, so the generation never
// waits for its client; the queue is bounded by the request's context. Lives until gRPC and the generation have both
// let go of it.
class GenerateStream final : public grpc::ServerWriteReactor<v1::GenerateResponse>, public GenerationSink {
 public:
  explicit GenerateStream(GenerationLoop* loop) : loop_(*loop) {}

  void HoldForCall(std::shared_ptr<GenerateStream> self) { self_ = std::move(self); }
  // Hands the request to the loop, unless the call was cancelled already.
  void Submit(std::shared_ptr<Generation> generation) {
    {
      const std::lock_guard lock(mutex_);
      if (cancelled_) return;
      generation_ = generation;
    }
    loop_.Submit(std::move(generation));
  }

  void Send(v1::GenerateResponse response) override {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    queue_.push_back(std::move(response));
    if (queue_.size() == 1) StartWrite(&queue_.front());
  }
  void Close(const absl::Status& status) override {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = status;
    FinishIfDone();
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    queue_.pop_front();
    if (!ok) {
      // The client is gone; OnCancel follows and tells the loop.
      queue_.clear();
      if (!end_) end_ = Cancelled("the client is gone");
    }
    if (!queue_.empty()) {
      StartWrite(&queue_.front());
    } else {
      FinishIfDone();
    }
  }
  void OnCancel() override {
    std::shared_ptr<Generation> generation;
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
      generation = generation_;
      while (queue_.size() > 1) queue_.pop_back();  // the front one is on its way
      if (!end_) end_ = Cancelled("the call was cancelled");
      FinishIfDone();
    }
    if (generation != nullptr) loop_.Cancel(std::move(generation));
  }
  void OnDone() override {
    std::shared_ptr<Generation> generation;  // holds this stream as its sink: let go of it outside the lock
    const std::shared_ptr<GenerateStream> self = std::move(self_);
    const std::lock_guard lock(mutex_);
    generation = std::move(generation_);
  }

 private:
  void FinishIfDone() {
    if (finished_ || !end_ || !queue_.empty()) return;
    finished_ = true;
    Finish(ToGrpcStatus(*end_));
  }

  GenerationLoop& loop_;
  std::shared_ptr<GenerateStream> self_;  // while gRPC uses it
  std::mutex mutex_;
  std::shared_ptr<Generation> generation_;
  std::deque<v1::GenerateResponse> queue_;  // the front one is being written
  std::optional<absl::Status> end_;         // what the call ends with, once the queue is empty
  bool cancelled_ = false;
  bool finished_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* FerryService::Generate(grpc::CallbackServerContext* context,
                                                                       const v1::GenerateRequest* request) {
  const auto stream = std::make_shared<GenerateStream>(parts_.loop);
  stream->HoldForCall(stream);
  const absl::Time deadline = DeadlineOf(*context, *parts_.clock);
  // `request` lives as long as the call, and the call until the stream has finished; but a cancelled call may finish
  // before this task begins, so the task has its own copy.
  parts_.pool->Post([this, stream, deadline, request = std::make_shared<v1::GenerateRequest>(*request)] {
    absl::StatusOr<std::shared_ptr<Request>> generation =
        Request::Create(*request, parts_.tokenizer, parts_.limits, RandomSeed(), deadline, parts_.clock, stream);
    if (generation.ok()) {
      stream->Submit(*std::move(generation));
    } else {
      stream->Close(generation.status());
    }
  });
  return stream.get();
}

grpc::ServerUnaryReactor* FerryService::Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                                 v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  parts_.pool->Post([this, reactor, request, response] {
    const EncodeOptions options = {.add_bos = request->has_add_bos() ? request->add_bos() : parts_.tokenizer->adds_bos(),
                                   .parse_special = request->has_parse_special() ? request->parse_special() : true};
    const absl::StatusOr<std::vector<int32_t>> ids = parts_.tokenizer->Encode(request->text(), options);
    if (ids.ok()) response->mutable_ids()->Add(ids->begin(), ids->end());
    reactor->Finish(ToGrpcStatus(ids.status()));
  });
  return reactor;
}

grpc::ServerUnaryReactor* FerryService::Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                                   v1::DetokenizeResponse* response) {
  std::vector<int32_t> ids;
  ids.reserve(request->ids_size());
  for (const uint32_t id : request->ids()) {
    if (id >= static_cast<uint32_t>(parts_.tokenizer->vocab_size())) {
      return Finish(context, InvalidArgument("ids[%d] is %d, want 0 to %d", ids.size(), id, parts_.tokenizer->vocab_size() - 1));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  absl::StatusOr<std::string> text = parts_.tokenizer->Decode(ids, request->render_special());
  if (text.ok()) response->set_text(*std::move(text));
  return Finish(context, text.status());
}

grpc::ServerUnaryReactor* FerryService::GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest*,
                                                     v1::GetModelInfoResponse* response) {
  *response = parts_.model_info;
  return Finish(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* FerryService::GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest*,
                                                      v1::GetServerInfoResponse* response) {
  *response = parts_.server_info();
  return Finish(context, absl::OkStatus());
}

}  // namespace ferry
