#include "cli/late_word.h"

#include <cstdio>

namespace ferry {

LateWord::LateWord(std::string text, absl::Duration moment) {
  thread_ = std::thread([this, text = std::move(text), moment] {
    std::unique_lock lock(mutex_);
    if (over_changed_.wait_for(lock, absl::ToChronoMilliseconds(moment), [&] { return over_; })) return;
    std::fprintf(stderr, "%s\n", text.c_str());
  });
}

LateWord::~LateWord() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  over_changed_.notify_all();
  thread_.join();
}

}  // namespace ferry
