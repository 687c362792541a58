#include "common/repeating_thread.h"

#include <utility>

#include "common/thread_limit.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<RepeatingThread>> RepeatingThread::Start(absl::Duration pause, std::function<void()> body) {
  std::unique_ptr<RepeatingThread> repeating(new RepeatingThread(pause, std::move(body)));
  ASSIGN_OR_RETURN(repeating->thread_, StartThread([raw = repeating.get()] { raw->Run(); }));
  return repeating;
}

RepeatingThread::~RepeatingThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void RepeatingThread::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    body_();
    lock.lock();
    wake_.wait_for(lock, absl::ToChronoMilliseconds(pause_), [this] { return stop_; });
  }
}

}  // namespace ferry
