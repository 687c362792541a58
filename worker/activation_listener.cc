#include "worker/activation_listener.h"

#include <algorithm>
#include <utility>

#include "common/escaped.h"
#include "common/log.h"
#include "common/shm/descriptor_socket.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

constexpr absl::Duration kAcceptPoll = absl::Milliseconds(200);
constexpr absl::Duration kHandshake = absl::Seconds(1);    // of a caller that may be none of ours
constexpr absl::Duration kOfferLasts = absl::Seconds(15);  // longer than an epoch may take to begin
constexpr auto kTakePoll = std::chrono::milliseconds(100);

}  // namespace

ActivationListener::~ActivationListener() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<ActivationListener::Offer> ActivationListener::Expect(ActivationWords words) {
  const std::lock_guard lock(mutex_);
  if (listener_ == nullptr) {
    ASSIGN_OR_RETURN(std::unique_ptr<DataListener> listener, DataListener::Listen(at_, identity_));
    ASSIGN_OR_RETURN(thread_, StartThread([this] { AcceptAll(); }));
    listener_ = std::move(listener);
  }
  words.key = RandomDescriptorKey().substr(0, ActivationWords::kKeyBytes);
  expected_ = words;
  expected_until_ = Deadline::In(kOfferLasts);
  came_ = nullptr;
  changed_.notify_all();
  return Offer{.address = listener_->address(), .key = words.key};
}

absl::StatusOr<std::unique_ptr<DataConnection>> ActivationListener::Take(const std::string& key, Deadline deadline,
                                                                         const std::function<bool()>& cancelled) {
  std::unique_lock lock(mutex_);
  while (true) {
    if (!expected_ || expected_->key != key) return absl::AbortedError("no connection is expected with this key");
    if (came_ != nullptr) {
      expected_.reset();
      return std::move(came_);
    }
    if (deadline.Passed()) break;
    if (cancelled && cancelled()) break;
    changed_.wait_until(lock, std::min(deadline.time(), Deadline::Clock::now() + kTakePoll));
  }
  expected_.reset();
  return deadline.Passed() ? DeadlineExceeded("no data connection came from the previous worker")
                           : absl::CancelledError("the caller is gone");
}

void ActivationListener::AcceptAll() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (expected_until_.Passed()) {
      expected_.reset();
      came_ = nullptr;
    }
    if (!expected_) {
      changed_.wait(lock);
      continue;
    }
    if (came_ != nullptr) {
      changed_.wait_until(lock, expected_until_.time());
      continue;
    }
    lock.unlock();
    const absl::Status taken = AcceptOne();
    if (!taken.ok()) spdlog::warn("a data connection was refused: {}", Escaped(taken.ToString()));
    lock.lock();
  }
}

// OK: one was taken, or none came.
absl::Status ActivationListener::AcceptOne() {
  ASSIGN_OR_RETURN(std::unique_ptr<DataConnection> connection, listener_->Accept(Deadline::In(kAcceptPoll), kHandshake));
  if (connection == nullptr) return absl::OkStatus();
  std::array<std::byte, kActivationWordsBytes> said;
  RETURN_IF_ERROR(connection->Receive(said, Deadline::In(kHandshake)));
  const std::lock_guard lock(mutex_);
  if (!expected_ || came_ != nullptr) return absl::AbortedError("no connection is expected any more");
  RETURN_IF_ERROR(CheckActivationWords(said, *expected_));
  came_ = std::move(connection);
  changed_.notify_all();
  return absl::OkStatus();
}

}  // namespace ferry
