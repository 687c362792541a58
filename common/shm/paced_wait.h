#pragma once

// Waits that repeat with about the same length, such as that for the answer to each step of decode. A sleeping thread wakes 50 to
// 100 us late; a spinning thread takes a core from threads that compute. So a PacedWait predicts the length from the last waits,
// sleeps until shortly before that, and spins for the rest.
//
// Spinning yields the core to any thread that could run, so what it takes from others is little where cores are free.

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/shm/futex.h"

namespace ferry {

// For a thread that feeds a device. A worker that slept in the half of each token in which another worker computed fed its own
// device more slowly after it: decode on two GPUs 2 to 3 % (docs/measurements/several_gpus.md).
inline constexpr absl::Duration kAwakeBesideADevice = absl::Milliseconds(2);

// One thread at a time.
class PacedWait {
 public:
  // Later waits that are expected to be no longer than `longest` are spun through. Before the first wait.
  void StayAwake(absl::Duration longest) { awake_ = longest; }

  // Waits until done() is true or `deadline` has passed; returns whether done() was. sleep(until) returns at `until`, or earlier
  // when the event that makes done() true wakes it; it may also return for no reason.
  template <typename Done, typename Sleep>
  bool Until(Deadline deadline, const Done& done, const Sleep& sleep) {
    const Stopwatch waiting;
    const bool in_time = Wait(deadline, done, sleep);
    if (in_time) last_[next_++ % last_.size()] = waiting.Elapsed();
    return in_time;
  }

  // The predicted length of the next wait: the shortest of the last three.
  absl::Duration Expected() const { return *std::min_element(last_.begin(), last_.end()); }

 private:
  template <typename Done, typename Sleep>
  bool Wait(Deadline deadline, const Done& done, const Sleep& sleep) {
    if (done()) return true;
    const absl::Duration expected = Expected();
    const bool awake = expected <= awake_;
    if (!awake && expected > kSpinBeforeSleep) {
      const Deadline early = std::min(deadline, Deadline::In(expected - kSpinBeforeSleep / 2));
      while (!early.Passed()) {
        sleep(early);
        if (done()) return true;
      }
    }
    const absl::Duration spin = awake ? expected + kSpinBeforeSleep : kSpinBeforeSleep;
    if (SpinUntil(std::min(spin, deadline.Remaining()), done)) return true;
    while (!deadline.Passed()) {
      sleep(deadline);
      if (done()) return true;
    }
    return false;
  }

  // Lengths of the last waits. Their minimum ignores a wait that was long by chance.
  std::array<absl::Duration, 3> last_ = {};
  size_t next_ = 0;
  absl::Duration awake_ = absl::ZeroDuration();
};

}  // namespace ferry
