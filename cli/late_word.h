#pragma once

// Names a wait on standard error if it takes longer than a moment, so that the screen does not stay empty.

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"

namespace ferry {

class LateWord {
 public:
  explicit LateWord(std::string text, absl::Duration moment = absl::Seconds(1.5));
  ~LateWord();  // the wait is over
  LateWord(const LateWord&) = delete;
  LateWord& operator=(const LateWord&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable over_changed_;
  bool over_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace ferry
