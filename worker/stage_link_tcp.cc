#include "worker/stage_link_tcp.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "common/thread_limit.h"
#include "worker/pinned_rows.h"

namespace ferry {
namespace {

// What one call of the system takes about as long for as a thread takes to wake.
constexpr size_t kSmallBytes = 128 << 10;
constexpr int64_t kMaxHeldBytes = int64_t{64} << 20;                // of a sink, and of a source
constexpr absl::Duration kReadAheadPoll = absl::Milliseconds(100);  // how late a source's thread may notice its end
constexpr absl::Duration kReadAheadPause = absl::Milliseconds(1);   // while the thread that computes reads by itself

// Buffers that one side may hold: as many as a step needs, and one that is filled meanwhile.
int64_t NumBuffers(const TcpLinkOptions& options, int64_t rows_per_buffer) {
  const int64_t of_step = (options.max_rows + rows_per_buffer - 1) / rows_per_buffer;
  const int64_t most = kMaxHeldBytes / (rows_per_buffer * options.n_embd * static_cast<int64_t>(sizeof(float)));
  return 1 + std::max<int64_t>(1, std::min(of_step, most));
}

int64_t RowsPerBuffer(const TcpLinkOptions& options) { return std::min(RowsOfAMessage(options.n_embd), options.max_rows); }

class TcpSink final : public ActivationSink {
 public:
  TcpSink(std::unique_ptr<DataConnection> connection, const TcpLinkOptions& options)
      : connection_(std::move(connection)),
        options_(options),
        pool_(options.ops, options.n_embd, RowsPerBuffer(options)),
        max_queued_(NumBuffers(options, pool_.num_rows()) - 1) {}
  ~TcpSink() override {
    Abort();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start() {
    ASSIGN_OR_RETURN(thread_, StartThread([this] { SendQueued(); }));
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, Deadline deadline) override {
    RETURN_IF_ERROR(AwaitBuffer(deadline));
    filling_->Pin();
    num_rows_ = std::min(num_rows, pool_.num_rows());
    return filling_->rows().first(num_rows_ * options_.n_embd);
  }

  absl::Status Send(uint64_t step, int64_t first_row, Deadline deadline) override {
    return SendFilled({.kind = ActivationKind::kRows, .step = step, .first_row = first_row, .num_rows = num_rows_},
                      num_rows_ * options_.n_embd * sizeof(float), deadline);
  }

  absl::Status SendFailure(uint64_t step, const std::string& error, Deadline deadline) override {
    RETURN_IF_ERROR(AwaitBuffer(deadline));
    const std::string text = error.empty() ? "it failed" : error.substr(0, kMaxFailureText);
    std::memcpy(filling_->rows().data(), text.data(), text.size());
    return SendFilled({.kind = ActivationKind::kFailure, .step = step, .text_bytes = static_cast<int64_t>(text.size())},
                      text.size(), deadline);
  }

  absl::Status AwaitDropped(Deadline deadline) override {
    uint64_t taken = 0;
    {
      std::unique_lock lock(mutex_);
      const auto sent = [this] { return (queue_.empty() && !sending_) || !failed_.ok() || aborted_; };
      if (!changed_.wait_until(lock, deadline.time(), sent)) return TakesNothing();
      RETURN_IF_ERROR(FailedLocked());
      sending_ = true;  // the connection is this thread's meanwhile
    }
    const absl::Status received = connection_->Receive(std::as_writable_bytes(std::span(&taken, 1)), deadline);
    const std::lock_guard lock(mutex_);
    sending_ = false;
    ++confirmed_;
    if (!received.ok()) return FailLocked(received);
    if (taken != confirmed_) return FailLocked(Internal("it has taken %d messages, want %d", taken, confirmed_));
    return absl::OkStatus();
  }

  void Abort() override {
    {
      const std::lock_guard lock(mutex_);
      aborted_ = true;
      changed_.notify_all();
    }
    connection_->Cut();
  }

 private:
  struct Message {
    std::unique_ptr<PinnedRows> memory;
    size_t bytes = 0;  // behind the header
    Deadline deadline;
  };

  absl::Status TakesNothing() const { return DeadlineExceeded("the next worker took no hidden states in time"); }
  absl::Status FailedLocked() const { return aborted_ ? Aborted("epoch %d is over", options_.epoch) : failed_; }
  absl::Status FailLocked(const absl::Status& why) {
    if (failed_.ok()) failed_ = absl::IsDeadlineExceeded(why) ? TakesNothing() : Annotate(why, "the next worker");
    changed_.notify_all();
    return FailedLocked();
  }
  // A buffer for the thread that computes, in filling_, once the queue has room for what it will hold. Errors of Reserve.
  absl::Status AwaitBuffer(Deadline deadline) {
    {
      std::unique_lock lock(mutex_);
      const auto room = [this] { return static_cast<int64_t>(queue_.size()) < max_queued_ || !failed_.ok() || aborted_; };
      if (!changed_.wait_until(lock, deadline.time(), room)) return TakesNothing();
      RETURN_IF_ERROR(FailedLocked());
    }
    if (filling_ == nullptr) {
      ASSIGN_OR_RETURN(filling_, pool_.Take());
    }
    return absl::OkStatus();
  }

  absl::Status SendFilled(ActivationHeader header, size_t bytes, Deadline deadline) {
    header.number = ++number_;
    header.epoch = options_.epoch;
    const std::array<std::byte, kActivationHeaderBytes> encoded = Encode(header);
    std::copy(encoded.begin(), encoded.end(), filling_->header().begin());
    {
      std::unique_lock lock(mutex_);
      RETURN_IF_ERROR(FailedLocked());
      if (bytes > kSmallBytes || sending_ || !queue_.empty()) {
        queue_.push_back({std::move(filling_), bytes, deadline});
        changed_.notify_all();
        return absl::OkStatus();
      }
      sending_ = true;
    }
    const absl::Status sent = connection_->Send(filling_->frame(bytes), deadline);
    const std::lock_guard lock(mutex_);
    sending_ = false;
    return sent.ok() ? absl::OkStatus() : FailLocked(sent);
  }

  void SendQueued() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return aborted_ || (!queue_.empty() && !sending_); });
      if (aborted_) return;
      Message message = std::move(queue_.front());
      sending_ = true;
      lock.unlock();
      const absl::Status sent = connection_->Send(message.memory->frame(message.bytes), message.deadline);
      pool_.GiveBack(std::move(message.memory));
      lock.lock();
      queue_.pop_front();
      sending_ = false;
      changed_.notify_all();
      if (!sent.ok()) {
        (void)FailLocked(sent);
        return;
      }
    }
  }

  const std::unique_ptr<DataConnection> connection_;
  const TcpLinkOptions options_;
  PinnedRowsPool pool_;
  const int64_t max_queued_;
  // Of the thread that computes.
  std::unique_ptr<PinnedRows> filling_;
  int64_t num_rows_ = 0;  // reserved
  uint64_t number_ = 0;   // of the last message
  uint64_t confirmed_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool sending_ = false;  // a thread uses the connection
  bool aborted_ = false;
  absl::Status failed_;        // for good
  std::deque<Message> queue_;  // the first one is being sent, if sending_
  std::thread thread_;
};

class TcpSource final : public ActivationSource {
 public:
  TcpSource(std::unique_ptr<DataConnection> connection, const TcpLinkOptions& options)
      : connection_(std::move(connection)),
        options_(options),
        pool_(std::make_shared<PinnedRowsPool>(options.ops, options.n_embd, RowsPerBuffer(options))),
        max_held_(NumBuffers(options, pool_->num_rows()) - 1),
        headers_(options.epoch, options.max_rows, pool_->num_rows()) {}
  ~TcpSource() override {
    Abort();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start() {
    ASSIGN_OR_RETURN(thread_, StartThread([this] { ReadAhead(); }));
    return absl::OkStatus();
  }

  absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, Deadline deadline) override {
    computing_waits_ = true;
    absl::StatusOr<Message> message = AwaitMessage(step, first_row, deadline);
    computing_waits_ = false;
    RETURN_IF_ERROR(message.status());
    message->memory->Pin();
    const int64_t num_floats = message->header.num_rows * options_.n_embd;
    ActivationChunk chunk = {.first_row = first_row, .values = message->memory->rows().first(num_floats), .owner = nullptr};
    chunk.owner = std::shared_ptr<PinnedRows>(
        message->memory.release(), [pool = pool_](PinnedRows* rows) { pool->GiveBack(std::unique_ptr<PinnedRows>(rows)); });
    return chunk;
  }

  absl::Status Confirm(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline.time(), [this] { return !reading_; })) {
      return DeadlineExceeded("the previous worker was not told in time");
    }
    const Reads reads(*this, lock);
    ++confirmed_;
    return connection_->Send(std::as_bytes(std::span(&confirmed_, 1)), deadline);
  }

  void Abort() override {
    {
      const std::lock_guard lock(mutex_);
      aborted_ = true;
      changed_.notify_all();
    }
    connection_->Cut();
  }

 private:
  struct Message {
    ActivationHeader header;
    std::string failure;                 // not empty: the step failed
    std::unique_ptr<PinnedRows> memory;  // rows otherwise
  };
  // The connection, and what is kept of it, belong to this thread meanwhile. `lock` is given up and taken again.
  class Reads {
   public:
    Reads(TcpSource& source, std::unique_lock<std::mutex>& lock) : source_(source), lock_(lock) {
      source_.reading_ = true;
      lock_.unlock();
    }
    ~Reads() {
      lock_.lock();
      source_.reading_ = false;
      source_.changed_.notify_all();
    }
    Reads(const Reads&) = delete;

   private:
    TcpSource& source_;
    std::unique_lock<std::mutex>& lock_;
  };

  static absl::Status NothingCame(uint64_t step, int64_t first_row) {
    return DeadlineExceeded("no hidden states of step %d from row %d on came in time", step, first_row);
  }

  // The rows that the stage wants next, once they have come.
  absl::StatusOr<Message> AwaitMessage(uint64_t step, int64_t first_row, Deadline deadline) {
    std::unique_lock lock(mutex_);
    while (true) {
      DropBeforeLocked(step);
      if (aborted_) return Aborted("epoch %d is over", options_.epoch);
      if (!messages_.empty()) {
        Message& front = messages_.front();
        RETURN_IF_ERROR(CheckNextChunk(step, first_row, front.header.step, front.header.first_row, front.failure));
        Message message = std::move(front);
        messages_.pop_front();
        return message;
      }
      bool came = false;
      if (!reading_ && !ended_.ok()) {
        RETURN_IF_ERROR(EndedLocked(step, deadline, lock));
      } else if (!reading_) {
        const Reads reads(*this, lock);
        came = ReadSome(deadline);
      } else {
        changed_.wait_until(lock, deadline.time());
      }
      if (!came && messages_.empty() && (reading_ || ended_.ok()) && deadline.Passed()) return NothingCame(step, first_row);
    }
  }

  // What an earlier step, which failed here, left behind.
  void DropBeforeLocked(uint64_t step) {
    while (!messages_.empty() && messages_.front().header.step < step) {
      if (messages_.front().memory != nullptr) pool_->GiveBack(std::move(messages_.front().memory));
      messages_.pop_front();
    }
  }

  // What the connection's end means for a step. When the other worker died, the coordinator notices as fast and knows better what
  // to do, so that the step fails by this only when nobody ends the epoch. OK: it was ended.
  absl::Status EndedLocked(uint64_t step, Deadline deadline, std::unique_lock<std::mutex>& lock) {
    if (!absl::IsUnavailable(ended_)) return Annotate(ended_, "the worker before this one sent what it may not");
    const Deadline patience = Deadline::In(kCutOffPatience - since_ended_.Elapsed());
    const bool aborted = changed_.wait_until(lock, std::min(deadline, patience).time(), [this] { return aborted_.load(); });
    if (aborted) return absl::OkStatus();
    if (!patience.Passed()) return DeadlineExceeded("no hidden states of step %d came in time", step);
    return Aborted("no hidden states of step %d come any more: the worker before this one cannot be reached: %s", step,
                   ended_.message());
  }

  // While the connection is this thread's: reads what has come of the next message, at least something before `deadline`, and
  // keeps it when it is whole. Whether something came; why nothing more can come is in ended_.
  bool ReadSome(Deadline deadline) {
    const absl::StatusOr<size_t> came = ReadPart(deadline);
    if (came.ok()) return *came > 0;
    since_ended_.Restart();
    ended_ = came.status();
    return false;
  }

  absl::StatusOr<size_t> ReadPart(Deadline deadline) {
    if (memory_ == nullptr) {
      ASSIGN_OR_RETURN(memory_, pool_->Take());
      received_ = 0;
      wanted_ = kActivationHeaderBytes;
    }
    const std::span<std::byte> left = memory_->frame(wanted_ - kActivationHeaderBytes).subspan(received_);
    ASSIGN_OR_RETURN(const size_t came, connection_->ReceiveSome(left, deadline));
    received_ += came;
    if (received_ < wanted_) return came;
    if (wanted_ == kActivationHeaderBytes) {
      ASSIGN_OR_RETURN(header_, headers_.Parse(memory_->header()));
      const int64_t row_bytes = options_.n_embd * static_cast<int64_t>(sizeof(float));
      wanted_ += static_cast<size_t>(header_.num_rows * row_bytes + header_.text_bytes);
      return came;
    }
    Message message = {.header = header_, .failure = "", .memory = std::move(memory_)};
    if (header_.kind == ActivationKind::kFailure) {
      message.failure.assign(reinterpret_cast<const char*>(message.memory->rows().data()), header_.text_bytes);
      pool_->GiveBack(std::move(message.memory));
    }
    const std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
    return came;
  }

  // While the stage computes: so that the sender can go on with its next step.
  void ReadAhead() {
    while (!aborted_) {
      connection_->AwaitBytes(Deadline::In(kReadAheadPoll));
      bool came = false;
      {
        std::unique_lock lock(mutex_);
        if (!reading_ && !ended_.ok()) return;
        while (MayReadAheadLocked()) {
          const Reads reads(*this, lock);
          if (!ReadSome(Deadline::In(absl::ZeroDuration()))) break;
          came = true;
        }
      }
      if (!came) absl::SleepFor(kReadAheadPause);
    }
  }
  bool MayReadAheadLocked() const {
    return !reading_ && !aborted_ && !computing_waits_ && ended_.ok() && static_cast<int64_t>(messages_.size()) < max_held_;
  }

  const std::unique_ptr<DataConnection> connection_;
  const TcpLinkOptions options_;
  const std::shared_ptr<PinnedRowsPool> pool_;  // chunks that the stage still has keep it
  const int64_t max_held_;
  std::atomic<bool> aborted_ = false;
  std::atomic<bool> computing_waits_ = false;  // the thread that computes reads by itself

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Message> messages_;  // whole ones
  bool reading_ = false;          // the connection and what follows are a thread's own; otherwise mutex_ guards it
  ActivationHeaders headers_;
  std::unique_ptr<PinnedRows> memory_;  // of the message that comes; null: none has begun
  size_t received_ = 0, wanted_ = 0;    // of its bytes, with the header
  ActivationHeader header_;
  uint64_t confirmed_ = 0;
  absl::Status ended_;  // why nothing more can be read
  Stopwatch since_ended_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationSink>> MakeTcpSink(std::unique_ptr<DataConnection> connection,
                                                            const TcpLinkOptions& options) {
  auto sink = std::make_unique<TcpSink>(std::move(connection), options);
  RETURN_IF_ERROR(sink->Start());
  return sink;
}

absl::StatusOr<std::unique_ptr<ActivationSource>> MakeTcpSource(std::unique_ptr<DataConnection> connection,
                                                                const TcpLinkOptions& options) {
  auto source = std::make_unique<TcpSource>(std::move(connection), options);
  RETURN_IF_ERROR(source->Start());
  return source;
}

}  // namespace ferry
