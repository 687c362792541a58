#pragma once

// A thread that does something again and again, with a pause in between.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "common/status.h"

namespace ferry {

// The owner declares it behind everything that `body` uses, so that it is destroyed first.
class RepeatingThread {
 public:
  // Calls `body` now, and `pause` after each of its returns. ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<RepeatingThread>> Start(absl::Duration pause, std::function<void()> body);
  // Returns when a call that is under way has ended.
  ~RepeatingThread();

 private:
  RepeatingThread(absl::Duration pause, std::function<void()> body) : pause_(pause), body_(std::move(body)) {}
  void Run();

  const absl::Duration pause_;
  const std::function<void()> body_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace ferry
