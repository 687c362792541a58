#include "coordinator/generation/generate_stream.h"

#include <utility>

#include "common/escaped.h"
#include "common/log.h"
#include "common/rpc/detailed_status.h"
#include "ferry/v1/generate.grpc.pb.h"

namespace ferry {

class GenerateStream::Sink final : public GenerationSink {
 public:
  Sink(std::shared_ptr<GenerateStream> stream, uint32_t index) : stream_(std::move(stream)), index_(index) {}
  void Send(v1::GenerateResponse response) override { stream_->Send(index_, std::move(response)); }
  void OnProgress(int64_t cached, int64_t done) override {
    if (index_ == 0) stream_->OnProgress(cached, done);
  }
  void Close(const absl::Status& status) override { stream_->CloseOutput(status); }

 private:
  const std::shared_ptr<GenerateStream> stream_;
  const uint32_t index_;
};

std::shared_ptr<GenerationSink> GenerateStream::SinkOf(std::shared_ptr<GenerateStream> stream, uint32_t index) {
  return std::make_shared<Sink>(std::move(stream), index);
}

GenerateStream::GenerateStream(Options options, grpc::CallbackServerContext* context)
    : options_(std::move(options)), begun_(options_.clock->Now()), peer_(context->peer()), context_(context), progress_(begun_) {}

GenerateStream::~GenerateStream() {
  if (has_place_) options_.open_calls->Remove(peer_);
}

absl::Status GenerateStream::TakePlace() {
  const absl::Status taken = options_.open_calls->Add(peer_);
  has_place_ = taken.ok();
  return taken;
}

void GenerateStream::SetCaller(const Principal& caller) {
  const std::lock_guard lock(mutex_);
  caller_ = caller;
}

absl::Status GenerateStream::CountRequests(int64_t num) {
  const std::lock_guard lock(mutex_);
  for (; num > 0; --num) {
    RETURN_IF_ERROR(options_.usage->Begin(caller_));
    ++counted_;
  }
  return absl::OkStatus();
}

void GenerateStream::SetRequestId(std::string request_id) {
  const std::lock_guard lock(mutex_);
  request_id_ = std::move(request_id);
}

bool GenerateStream::Abort(const std::set<std::string_view>& request_ids, const Principal& caller) {
  {
    const std::lock_guard lock(mutex_);
    const bool may = caller.role == Role::kAdmin || caller.name == caller_.name;
    if (finished_ || cancelled_ || !request_ids.contains(request_id_) || !may) return false;
  }
  TryCancel();
  return true;
}

void GenerateStream::Submit(std::vector<std::shared_ptr<Generation>> outputs) {
  {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return;
    prompt_tokens_ = outputs.front()->prompt_tokens();
    outputs_ = outputs;
    outputs_left_ = outputs.size();
  }
  for (const std::shared_ptr<Generation>& output : outputs) options_.loop->Submit(output);
  // OnCancel may have been quicker, and found nothing to drop.
  if (!cancelled()) return;
  for (std::shared_ptr<Generation>& output : outputs) options_.loop->Cancel(std::move(output));
}

bool GenerateStream::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

void GenerateStream::Send(uint32_t index, v1::GenerateResponse response) {
  response.set_index(index);
  std::vector<grpc::ByteBuffer> messages;
  const absl::Status written = options_.messages->Write(response, &messages);
  bool too_slow = false;
  {
    const std::lock_guard lock(mutex_);
    if (finished_ || end_) return;
    generated_tokens_ += response.token_ids_size();
    if (response.has_finish() && index == 0) finish_ = response.finish();
    if (!written.ok()) {
      end_ = written;
      FinishIfDoneLocked();
      return;
    }
    for (grpc::ByteBuffer& bytes : messages) {
      queued_bytes_ += static_cast<int64_t>(bytes.Length());
      queue_.push_back(std::move(bytes));
      if (queue_.size() == 1) WriteFrontLocked();
    }
    too_slow = queued_bytes_ > options_.max_unsent_bytes;
  }
  if (too_slow) TryCancel();
}

void GenerateStream::OnProgress(int64_t cached, int64_t done) {
  const std::lock_guard lock(mutex_);
  cached_tokens_ = cached;
  computed_tokens_ = done;
}

std::optional<v1::RunningRequest> GenerateStream::Describe() const {
  v1::RunningRequest request;
  const std::lock_guard lock(mutex_);
  if (end_) return std::nullopt;
  request.set_request_id(request_id_);
  request.set_key(caller_.name);
  request.set_prompt_tokens(static_cast<uint32_t>(prompt_tokens_));
  request.set_cached_tokens(static_cast<uint32_t>(cached_tokens_));
  request.set_computed_tokens(static_cast<uint32_t>(computed_tokens_));
  request.set_generated_tokens(static_cast<uint32_t>(generated_tokens_));
  request.set_seconds(absl::ToDoubleSeconds(options_.clock->Now() - begun_));
  return request;
}

void GenerateStream::Close(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  if (!end_) end_ = status;
  FinishIfDoneLocked();
}

void GenerateStream::CloseOutput(const absl::Status& status) {
  std::vector<std::shared_ptr<Generation>> others;
  {
    const std::lock_guard lock(mutex_);
    --outputs_left_;
    if (status.ok() && outputs_left_ > 0) return;
    if (!end_) end_ = status;
    if (outputs_left_ > 0) others = outputs_;
    FinishIfDoneLocked();
  }
  for (std::shared_ptr<Generation>& other : others) options_.loop->Cancel(std::move(other));
}

void GenerateStream::GiveUpSlowReader(absl::Time before) {
  {
    const std::lock_guard lock(mutex_);
    if (finished_ || queue_.empty() || progress_ >= before) return;
  }
  TryCancel();
}

void GenerateStream::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  queued_bytes_ -= static_cast<int64_t>(queue_.front().Length());
  queue_.pop_front();
  if (!ok) {
    // The client is gone; OnCancel follows and tells the loop.
    queue_.clear();
    queued_bytes_ = 0;
    if (!end_) end_ = Cancelled("the client is gone");
  }
  if (!queue_.empty()) {
    WriteFrontLocked();
  } else {
    FinishIfDoneLocked();
  }
}

void GenerateStream::OnCancel() {
  std::vector<std::shared_ptr<Generation>> outputs;
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    outputs = outputs_;
    while (queue_.size() > 1) {  // the front one is on its way
      queued_bytes_ -= static_cast<int64_t>(queue_.back().Length());
      queue_.pop_back();
    }
    if (!end_) end_ = Cancelled("the call was cancelled");
    FinishIfDoneLocked();
  }
  for (std::shared_ptr<Generation>& output : outputs) options_.loop->Cancel(std::move(output));
}

void GenerateStream::OnDone() {
  {
    const std::lock_guard lock(context_mutex_);
    context_ = nullptr;
  }
  std::vector<std::shared_ptr<Generation>> outputs;  // their sinks hold this stream: let go of them outside the lock
  const std::shared_ptr<GenerateStream> self = std::move(self_);
  const std::lock_guard lock(mutex_);
  outputs = std::move(outputs_);
  for (int64_t i = 0; i < counted_; ++i) options_.usage->End(caller_, i == 0 ? prompt_tokens_ + generated_tokens_ : 0);
  Audit();
}

void GenerateStream::FinishIfDoneLocked() {
  if (finished_ || !end_ || !queue_.empty()) return;
  finished_ = true;
  Finish(ToDetailedGrpcStatus(*end_));
}

void GenerateStream::WriteFrontLocked() {
  progress_ = options_.clock->Now();
  StartWrite(&queue_.front());
}

void GenerateStream::TryCancel() {
  const std::lock_guard lock(context_mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

// One line a request: caller, tokens, time, and how it ended; nothing of its texts.
void GenerateStream::Audit() const {
  spdlog::info(
      "audit: key={} peer={} prompt={} cached={} generated={} queue={:.3f}s prefill={:.3f}s decode={:.3f}s total={:.3f}s "
      "resumed={} suspended={} id={} outcome={}",
      caller_.name, Escaped(peer_), prompt_tokens_, finish_.cached_prompt_tokens(), generated_tokens_, finish_.queue_seconds(),
      finish_.prefill_seconds(), finish_.decode_seconds(), absl::ToDoubleSeconds(options_.clock->Now() - begun_),
      finish_.resumed(), finish_.suspended(), request_id_.empty() ? "-" : request_id_,
      absl::StatusCodeToString(end_ ? end_->code() : absl::StatusCode::kUnknown));
}

}  // namespace ferry
