#include "worker/stage_link.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/deadline.h"

namespace ferry {
namespace {

constexpr auto kCancelPoll = std::chrono::milliseconds(100);
constexpr int64_t kMaxOthersHeld = 256;  // as many as steps that a worker queues (step_runner.cc)
constexpr size_t kMaxErrorBytes = 1024;  // of the message that goes on to the client

}  // namespace

absl::Status ActivationSource::Receive(float*, int64_t num_rows, Deadline) {
  return Internal("the previous worker announced %d hidden states from device to device, and this link has no such way",
                  num_rows);
}

absl::Status ActivationSource::Confirm(Deadline) { return absl::OkStatus(); }

absl::StatusOr<bool> ActivationSink::SendFromDevice(uint64_t, int64_t, const float*, int64_t, Deadline) { return false; }

absl::Status ActivationSink::Announce(uint64_t, int64_t, int64_t, Deadline) {
  return absl::InternalError("this link announces no hidden states");
}

absl::Status ActivationSink::AwaitDropped(Deadline) {
  return absl::InternalError("this link cannot tell when the next worker has taken hidden states");
}

int64_t RowsOfAMessage(int64_t n_embd) {
  return std::max<int64_t>(1, kMaxActivationBytes / (n_embd * static_cast<int64_t>(sizeof(float))));
}

absl::Status CheckNextChunk(uint64_t step, int64_t first_row, uint64_t next_step, int64_t next_first_row,
                            const std::string& error) {
  if (next_step > step) return Internal("step %d lacks hidden states: those of step %d came", step, next_step);
  if (!error.empty()) return Aborted("step %d failed before this worker: %s", step, error);
  if (next_first_row == first_row) return absl::OkStatus();
  return Internal("hidden states of step %d begin at row %d, want %d", step, next_first_row, first_row);
}

absl::Status MissedAnnouncement(uint64_t step) {
  return Aborted("hidden states of step %d were announced from device to device and never received: the epoch has to end", step);
}

void ActivationQueue::BeginEpoch(uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  epoch_ = epoch;
  broken_.clear();
  items_.clear();
  rows_held_ = 0;
  others_held_ = 0;
  order_ = RowOrder(max_rows_);
  changed_.notify_all();
}

absl::Status ActivationQueue::CheckLocked(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows) const {
  if (epoch != epoch_ || epoch == 0) return Aborted("epoch is %d, want %d", epoch, epoch_);
  return order_.CheckRows(step, first_row, num_rows);
}

absl::Status ActivationQueue::CheckDataLocked(int64_t num_rows, size_t bytes) const {
  const size_t want_bytes = num_rows * n_embd_ * sizeof(float);
  if (num_rows > 1 && want_bytes > kMaxActivationBytes) {
    return InvalidArgument("num_rows is %d, want at most %d bytes of them", num_rows, kMaxActivationBytes);
  }
  if (bytes != want_bytes) return InvalidArgument("data has %d bytes, want %d for %d rows", bytes, want_bytes, num_rows);
  return absl::OkStatus();
}

absl::Status ActivationQueue::Push(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows, std::string data,
                                   const std::function<bool()>& cancelled) {
  std::unique_lock lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(epoch, step, first_row, num_rows));
  RETURN_IF_ERROR(CheckDataLocked(num_rows, data.size()));
  while (epoch_ == epoch && rows_held_ > 0 && rows_held_ + num_rows > max_rows_) {
    changed_.wait_for(lock, kCancelPoll);
    if (cancelled && cancelled()) return Cancelled("the sender is gone");
  }
  RETURN_IF_ERROR(CheckLocked(epoch, step, first_row, num_rows));  // the lock was given up
  order_.TakeRows(step, first_row + num_rows);
  rows_held_ += num_rows;
  Item& item = items_.emplace_back();
  item.step = step;
  item.first_row = first_row;
  item.num_rows = num_rows;
  item.data = std::move(data);
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status ActivationQueue::PushAnnouncement(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows) {
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(epoch, step, first_row, num_rows));
  if (step == 0) return absl::InvalidArgumentError("step is 0, want rows for a measurement");
  if (others_held_ >= kMaxOthersHeld) return ResourceExhausted("%d announcements and failed steps are waiting", others_held_);
  order_.TakeRows(step, first_row + num_rows);
  ++others_held_;
  Item& item = items_.emplace_back();
  item.step = step;
  item.first_row = first_row;
  item.num_rows = num_rows;
  item.announced = true;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status ActivationQueue::PushFailure(uint64_t epoch, uint64_t step, const std::string& error) {
  const std::lock_guard lock(mutex_);
  if (epoch != epoch_ || epoch == 0) return Aborted("epoch is %d, want %d", epoch, epoch_);
  RETURN_IF_ERROR(order_.CheckFailure(step));
  // A failure takes no room among the rows, so their number is bounded by itself.
  if (others_held_ >= kMaxOthersHeld) return ResourceExhausted("%d announcements and failed steps are waiting", others_held_);
  order_.TakeFailure(step);
  ++others_held_;
  Item& item = items_.emplace_back();
  item.step = step;
  item.error = error.empty() ? "it failed" : error.substr(0, kMaxErrorBytes);
  changed_.notify_all();
  return absl::OkStatus();
}

void ActivationQueue::Break(uint64_t epoch, const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (epoch != epoch_) return;
  broken_ = why;
  changed_.notify_all();
}

uint64_t ActivationQueue::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

absl::StatusOr<ActivationChunk> ActivationQueue::Next(uint64_t step, int64_t first_row, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const uint64_t epoch = epoch_;
  while (true) {
    if (epoch_ != epoch || epoch == 0) return Aborted("epoch %d is over", epoch);
    // What an earlier step, which failed here, left behind.
    while (!items_.empty() && items_.front().step < step) {
      if (items_.front().announced) return MissedAnnouncement(items_.front().step);
      PopLocked();
    }
    if (!items_.empty()) break;
    if (!broken_.empty()) return Aborted("no hidden states of step %d come any more: %s", step, broken_);
    if (changed_.wait_until(lock, deadline.time()) == std::cv_status::timeout && deadline.Passed()) {
      return DeadlineExceeded("no hidden states of step %d from row %d on came in time", step, first_row);
    }
  }
  Item& front = items_.front();
  RETURN_IF_ERROR(CheckNextChunk(step, first_row, front.step, front.first_row, front.error));
  if (front.announced) {
    const int64_t num_rows = front.num_rows;
    PopLocked();
    return ActivationChunk{.first_row = first_row, .announced_rows = num_rows};
  }
  const auto owner = std::make_shared<const std::string>(std::move(front.data));
  PopLocked();
  return ActivationChunk{.first_row = first_row,
                         .values = {reinterpret_cast<const float*>(owner->data()), owner->size() / sizeof(float)},
                         .owner = owner};
}

void ActivationQueue::PopLocked() {
  const Item& front = items_.front();
  if (front.holds_rows()) {
    rows_held_ -= front.num_rows;
  } else {
    --others_held_;
  }
  items_.pop_front();
  changed_.notify_all();
}

absl::StatusOr<std::span<float>> LoopbackSink::Reserve(int64_t num_rows, Deadline) {
  rows_.resize(std::min(num_rows, RowsOfAMessage(n_embd_)) * n_embd_);
  return std::span(rows_);
}

absl::Status LoopbackSink::Send(uint64_t step, int64_t first_row, Deadline deadline) {
  std::string data(reinterpret_cast<const char*>(rows_.data()), rows_.size() * sizeof(float));
  return next_.Push(epoch_, step, first_row, static_cast<int64_t>(rows_.size()) / n_embd_, std::move(data),
                    [&] { return aborted_ || deadline.Passed(); });
}

absl::Status LoopbackSink::SendFailure(uint64_t step, const std::string& error, Deadline) {
  return next_.PushFailure(epoch_, step, error);
}

}  // namespace ferry
