#include "coordinator/generation/text_calls.h"

#include <grpcpp/server_context.h>

#include <utility>

#include "common/grpc_status.h"

namespace ferry {
namespace {

constexpr int kShortTextThreads = 2;
constexpr absl::Duration kCallWatchInterval = absl::Milliseconds(500);

}  // namespace

// gRPC has it from its making until OnDone, which follows Finish.
class TextCalls::Call final : public grpc::ServerUnaryReactor {
 public:
  Call(TextCalls* calls, grpc::CallbackServerContext* context, const grpc::ByteBuffer* response)
      : calls_(*calls), context_(context), response_(*response) {}

  void End(const absl::Status& status) {
    {
      const std::lock_guard lock(calls_.mutex_);
      bytes_ = status.ok() ? response_.Length() : 0;
      ended_ = calls_.clock_.Now();
      calls_.unread_.insert(this);
      calls_.unread_bytes_ += bytes_;
    }
    Finish(ToGrpcStatus(status));
  }
  void OnDone() override {
    {
      const std::lock_guard lock(calls_.mutex_);
      calls_.unread_.erase(this);
      calls_.unread_bytes_ -= bytes_;
    }
    delete this;
  }
  bool cancelled() const { return context_->IsCancelled(); }
  // With the mutex of the calls, so that OnDone waits: gRPC calls that from threads of its own.
  void GiveUpIfEndedBefore(absl::Time before) const {
    if (ended_ < before) context_->TryCancel();
  }

 private:
  TextCalls& calls_;
  grpc::CallbackServerContext* const context_;
  const grpc::ByteBuffer& response_;
  size_t bytes_ = 0;
  absl::Time ended_;
};

absl::StatusOr<std::unique_ptr<TextCalls>> TextCalls::Create(const Clock* clock, Options options) {
  std::unique_ptr<TextCalls> calls(new TextCalls(clock, options));
  ASSIGN_OR_RETURN(calls->short_texts_, TaskPool::Create(kShortTextThreads, options.short_room));
  ASSIGN_OR_RETURN(calls->long_texts_, TaskPool::Create(1, options.long_room));
  ASSIGN_OR_RETURN(calls->watch_, RepeatingThread::Start(kCallWatchInterval, [raw = calls.get()] { raw->GiveUpSlowReaders(); }));
  return calls;
}

TextCalls::~TextCalls() = default;

absl::Status TextCalls::Post(std::function<void()> task, size_t bytes) {
  TaskPool& pool = bytes < options_.long_bytes ? *short_texts_ : *long_texts_;
  if (pool.TryPost(std::move(task), bytes)) return absl::OkStatus();
  return ResourceExhausted("too many texts wait to be tokenized");
}

grpc::ServerUnaryReactor* TextCalls::Answer(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                            const grpc::ByteBuffer* response, std::function<absl::Status()> answer) {
  Call* const call = new Call(this, context, response);
  const auto run = [this, call, answer = std::move(answer)] {
    if (call->cancelled()) return call->End(Cancelled("the call was cancelled"));
    {
      std::unique_lock lock(mutex_);
      if (unread_bytes_ > options_.max_unread_bytes) {
        lock.unlock();
        return call->End(ResourceExhausted("too many answers wait for clients that do not read them"));
      }
    }
    call->End(answer());
  };
  if (const absl::Status posted = Post(run, message->Length()); !posted.ok()) call->End(posted);
  return call;
}

void TextCalls::GiveUpSlowReaders() {
  const absl::Time before = clock_.Now() - options_.reader_patience;
  const std::lock_guard lock(mutex_);
  for (const Call* const call : unread_) call->GiveUpIfEndedBefore(before);
}

}  // namespace ferry
