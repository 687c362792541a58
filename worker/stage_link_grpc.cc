#include "worker/stage_link_grpc.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "proto/stream_metadata.h"

namespace ferry {
namespace {

// One PushActivations call. A write waits for gRPC to take it, so that a next worker that reads nothing is noticed in time.
class PushStream final : public grpc::ClientWriteReactor<internal::v1::Activations> {
 public:
  PushStream(internal::v1::Worker::Stub& stub, Incarnation next) {
    context_.AddMetadata(kIncarnationKey, std::to_string(next.value()));
    stub.async()->PushActivations(&context_, &response_, this);
    AddHold();  // writes start outside of this class's callbacks
    StartCall();
  }
  ~PushStream() override {
    context_.TryCancel();
    Release();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_; });
  }

  // Fill it, then Write.
  internal::v1::Activations& message() { return message_; }

  absl::Status Write(Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (broken_) return End(lock);
    writing_ = true;
    StartWrite(&message_);
    if (!changed_.wait_until(lock, deadline.time(), [&] { return !writing_ || done_; })) {
      broken_ = true;
      context_.TryCancel();
      return DeadlineExceeded("the next worker took no hidden states in time");
    }
    return broken_ || done_ ? End(lock) : absl::OkStatus();
  }

  // Running and later calls return Aborted. Any thread.
  void Cancel() { context_.TryCancel(); }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    broken_ |= !ok;
    changed_.notify_all();
  }
  void OnDone(const grpc::Status& status) override {
    const std::lock_guard lock(mutex_);
    done_ = true;
    status_ = FromGrpcStatus(status);
    changed_.notify_all();
  }

 private:
  // The reason why the stream has ended.
  absl::Status End(std::unique_lock<std::mutex>& lock) {
    broken_ = true;
    lock.unlock();
    Release();
    lock.lock();
    if (!changed_.wait_for(lock, std::chrono::seconds(1), [&] { return done_; }) || status_.ok()) {
      return Unavailable("the next worker ended the stream of hidden states");
    }
    return Annotate(status_, "the next worker");
  }
  void Release() {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(released_, true)) return;
    }
    RemoveHold();
  }

  grpc::ClientContext context_;
  internal::v1::PushActivationsResponse response_;
  internal::v1::Activations message_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool writing_ = false;
  bool broken_ = false;
  bool released_ = false;
  bool done_ = false;
  absl::Status status_;
};

class GrpcSink final : public ActivationSink {
 public:
  GrpcSink(std::shared_ptr<grpc::Channel> channel, Incarnation next, int64_t n_embd, uint64_t epoch)
      : stub_(internal::v1::Worker::NewStub(std::move(channel))), next_(next), n_embd_(n_embd), epoch_(epoch) {}

  absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, Deadline) override {
    ASSIGN_OR_RETURN(internal::v1::Activations* const message, Begin());
    num_rows_ = std::min(num_rows, RowsOfAMessage(n_embd_));
    message->mutable_data()->resize(num_rows_ * n_embd_ * sizeof(float));
    return std::span(reinterpret_cast<float*>(message->mutable_data()->data()), num_rows_ * n_embd_);
  }
  absl::Status Send(uint64_t step, int64_t first_row, Deadline deadline) override {
    internal::v1::Activations& message = stream_->message();
    message.set_step(step);
    message.set_first_row(first_row);
    message.set_num_rows(num_rows_);
    return stream_->Write(deadline);
  }
  absl::Status SendFailure(uint64_t step, const std::string& error, Deadline deadline) override {
    ASSIGN_OR_RETURN(internal::v1::Activations* const message, Begin());
    message->set_step(step);
    message->set_error(error.empty() ? "it failed" : error);
    return stream_->Write(deadline);
  }
  absl::Status Announce(uint64_t step, int64_t first_row, int64_t num_rows, Deadline deadline) override {
    ASSIGN_OR_RETURN(internal::v1::Activations* const message, Begin());
    message->set_step(step);
    message->set_first_row(first_row);
    message->set_num_rows(num_rows);
    message->set_announced(true);
    return stream_->Write(deadline);
  }
  void Abort() override {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    if (stream_ != nullptr) stream_->Cancel();
  }

 private:
  // The stream's message, empty but for the epoch.
  absl::StatusOr<internal::v1::Activations*> Begin() {
    {
      const std::lock_guard lock(mutex_);
      if (aborted_) return Aborted("epoch %d is over", epoch_);
      if (stream_ == nullptr) stream_ = std::make_unique<PushStream>(*stub_, next_);
    }
    internal::v1::Activations& message = stream_->message();
    message.Clear();
    message.set_epoch(epoch_);
    return &message;
  }

  const std::unique_ptr<internal::v1::Worker::Stub> stub_;
  const Incarnation next_;
  const int64_t n_embd_;
  const uint64_t epoch_;
  int64_t num_rows_ = 0;  // reserved
  std::mutex mutex_;
  bool aborted_ = false;                // guarded by mutex_
  std::unique_ptr<PushStream> stream_;  // made by the compute thread under mutex_, and its own but for Cancel
};

}  // namespace

std::unique_ptr<ActivationSink> MakeGrpcSink(std::shared_ptr<grpc::Channel> channel, Incarnation next, int64_t n_embd,
                                             uint64_t epoch) {
  return std::make_unique<GrpcSink>(std::move(channel), next, n_embd, epoch);
}

}  // namespace ferry
