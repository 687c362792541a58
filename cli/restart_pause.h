#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace ferry {

// How long a supervisor waits before it starts a process again: not at all after the first end, then 1, 2, 4, ... 30 seconds.
// Each ten seconds for which the process ran halve the next pause, and less than a second is none. So a process that dies at its
// start does not keep the machine busy, and one that ran for a minute is started again at once.
class RestartPause {
 public:
  // The process has ended, `ran` after its start.
  absl::Duration After(absl::Duration ran) {
    constexpr absl::Duration kShortest = absl::Seconds(1), kLongest = absl::Seconds(30), kHalving = absl::Seconds(10);
    for (; ran >= kHalving && next_ > absl::ZeroDuration(); ran -= kHalving) {
      next_ = next_ / 2 < kShortest ? absl::ZeroDuration() : next_ / 2;
    }
    const absl::Duration pause = next_;
    next_ = std::clamp(2 * pause, kShortest, kLongest);
    return pause;
  }

 private:
  absl::Duration next_;
};

}  // namespace ferry
