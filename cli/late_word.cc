#include "cli/late_word.h"

#include <cstdio>

#include "common/thread_limit.h"

namespace ferry {

LateWord::LateWord(std::string text, absl::Duration moment) {
  absl::StatusOr<std::thread> thread = StartThread([this, text = std::move(text), moment] {
    std::unique_lock lock(mutex_);
    if (over_changed_.wait_for(lock, absl::ToChronoMilliseconds(moment), [&] { return over_; })) return;
    std::fprintf(stderr, "%s\n", text.c_str());
  });
  if (thread.ok()) thread_ = *std::move(thread);  // without one there is no word
}

LateWord::~LateWord() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  over_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

}  // namespace ferry
