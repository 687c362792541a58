#include "gateway/routes/generation_job.h"

#include <mutex>
#include <utility>

#include "absl/time/clock.h"
#include "gateway/http/sse.h"

namespace ferry {
namespace {

class GenerationJob : public std::enable_shared_from_this<GenerationJob> {
 public:
  GenerationJob(std::unique_ptr<AnswerWriter> writer, ApiForm form, GatewayMetrics& metrics, std::shared_ptr<Exchange> exchange,
                size_t generations)
      : writer_(std::move(writer)),
        form_(form),
        metrics_(metrics),
        exchange_(std::move(exchange)),
        calls_(generations),
        timings_(generations),
        stopped_(generations) {}

  void Start(Engine& engine, std::vector<v1::GenerateRequest> requests) {
    exchange_->OnGone([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->CancelAll();
    });
    if (writer_->streams()) exchange_->BeginStream({.content_type = kSseContentType, .headers = {{"Cache-Control", "no-cache"}}});
    left_ = requests.size();
    for (size_t i = 0; i < requests.size(); ++i) {
      const std::shared_ptr<GenerateCall> call = engine.Generate(
          std::move(requests[i]),
          [self = shared_from_this(), i](const v1::GenerateResponse& message) { self->OnMessage(i, message); },
          [self = shared_from_this(), i](const absl::Status& status) { self->OnEnd(i, status); });
      bool cancel = false;
      {
        const std::lock_guard lock(mutex_);
        calls_[i] = call;
        cancel = cancelled_ || stopped_[i];
      }
      if (cancel) call->Cancel();
    }
  }

 private:
  void OnMessage(size_t index, const v1::GenerateResponse& message) {
    std::shared_ptr<GenerateCall> stop;
    {
      const std::lock_guard lock(mutex_);
      if (!status_.ok() || stopped_[index]) return;
      timings_[index].OnMessage(message, metrics_);
      std::string piece = writer_->OnMessage(index, message);
      if (!piece.empty()) exchange_->Send(std::move(piece));
      if (!message.has_finish() && writer_->ended(index)) {
        stopped_[index] = true;
        stop = calls_[index];
      }
    }
    if (stop != nullptr) stop->Cancel();
  }

  void OnEnd(size_t index, absl::Status status) {
    std::unique_lock lock(mutex_);
    if (stopped_[index]) status = absl::OkStatus();
    if (!status.ok() && status_.ok()) {
      status_ = status;
      if (!std::exchange(cancelled_, true)) {  // else the client has gone, and this is what followed
        metrics_.CountFailure(HttpStatusOf(status));
        exchange_->Fail(ErrorResponse(form_, status), writer_->OnError(status));
      }
    }
    --left_;
    if (left_ == 0 && status_.ok()) Finish();
    if (status_.ok()) return;
    const std::vector<std::shared_ptr<GenerateCall>> calls = calls_;
    lock.unlock();
    for (const auto& call : calls) {
      if (call != nullptr) call->Cancel();
    }
  }

  void Finish() {
    std::string rest = writer_->End();
    if (!writer_->streams()) return exchange_->Respond({.body = std::move(rest)});
    exchange_->Send(std::move(rest));
    exchange_->End();
  }

  void CancelAll() {
    std::vector<std::shared_ptr<GenerateCall>> calls;
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
      calls = calls_;
    }
    metrics_.CountAbort();
    for (const auto& call : calls) {
      if (call != nullptr) call->Cancel();
    }
  }

  const std::unique_ptr<AnswerWriter> writer_;
  const ApiForm form_;
  GatewayMetrics& metrics_;
  const std::shared_ptr<Exchange> exchange_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<GenerateCall>> calls_;  // those that have begun
  std::vector<RequestTiming> timings_;
  std::vector<bool> stopped_;  // by us, for its answer is complete
  size_t left_ = 0;
  bool cancelled_ = false;
  absl::Status status_;
};

}  // namespace

void RunGenerations(Engine& engine, std::vector<v1::GenerateRequest> requests, std::unique_ptr<AnswerWriter> writer, ApiForm form,
                    GatewayMetrics& metrics, std::shared_ptr<Exchange> exchange) {
  const auto job = std::make_shared<GenerationJob>(std::move(writer), form, metrics, std::move(exchange), requests.size());
  job->Start(engine, std::move(requests));
}

}  // namespace ferry
