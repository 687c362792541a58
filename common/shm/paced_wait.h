#pragma once

// Waits that come again and again, as for the answer to each step of decode. A thread that sleeps wakes 50 to 100 us late, and
// one that spins all the while takes a core from those that compute; so a wait that took some milliseconds the last times is
// slept through until shortly before it is over, and only its end is spun for.

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/shm/futex.h"

namespace ferry {

// One thread.
class PacedWait {
 public:
  // Until done() or `deadline`: whether it was done. sleep(until) sleeps until then at most, and no longer than until whoever
  // makes done() true says so; it may return for no reason.
  template <typename Done, typename Sleep>
  bool Until(absl::Time deadline, const Done& done, const Sleep& sleep) {
    const absl::Time begin = absl::Now();
    const bool in_time = WaitFrom(begin, deadline, done, sleep);
    if (in_time) last_[next_++ % last_.size()] = absl::Now() - begin;
    return in_time;
  }

  // How long the next wait may be expected to take, at least.
  absl::Duration Expected() const { return *std::min_element(last_.begin(), last_.end()); }

 private:
  template <typename Done, typename Sleep>
  bool WaitFrom(absl::Time begin, absl::Time deadline, const Done& done, const Sleep& sleep) {
    if (done()) return true;
    if (const absl::Duration expected = Expected(); expected > kSpinBeforeSleep) {
      const absl::Time early = std::min(deadline, begin + expected - kSpinBeforeSleep / 2);
      while (absl::Now() < early) {
        sleep(early);
        if (done()) return true;
      }
    }
    if (SpinUntil(std::min(kSpinBeforeSleep, deadline - absl::Now()), done)) return true;
    while (absl::Now() < deadline) {
      sleep(deadline);
      if (done()) return true;
    }
    return false;
  }

  // Of the last waits; one that was long by chance does not count.
  std::array<absl::Duration, 3> last_ = {};
  size_t next_ = 0;
};

}  // namespace ferry
