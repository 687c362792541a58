#pragma once

// One side's waits for the counters of a ring that two processes share.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/shm/futex.h"
#include "common/shm/paced_wait.h"
#include "common/status.h"

namespace ferry {

class RingWait {
 public:
  // `over`: what an aborted wait says.
  explicit RingWait(std::string over) : over_(std::move(over)) {}

  // Ends the waits for `counters` in this process, and those to come, with Aborted. Any thread.
  void Abort(std::initializer_list<const std::atomic<uint32_t>*> counters) {
    aborted_ = true;
    for (const std::atomic<uint32_t>* counter : counters) FutexWake(*counter, FutexScope::kShared);
  }

  // Until done(), which looks at `counter`. DeadlineExceeded, or Aborted. One thread.
  template <typename Done>
  absl::Status Until(const std::atomic<uint32_t>& counter, absl::Time deadline, const Done& done) {
    constexpr absl::Duration kLook = absl::Milliseconds(100);  // for an Abort between the look at it and the sleep
    const auto ended = [&] { return aborted_.load(std::memory_order_relaxed) || done(); };
    const bool in_time = wait_.Until(deadline, ended, [&](absl::Time until) {
      const uint32_t seen = counter.load(std::memory_order_acquire);
      if (!ended()) FutexWait(counter, seen, std::min(until, absl::Now() + kLook), FutexScope::kShared);
    });
    if (aborted_) return Aborted("%s", over_);
    return in_time ? absl::OkStatus() : DeadlineExceeded("nothing happened in time");
  }

 private:
  const std::string over_;
  std::atomic<bool> aborted_{false};
  PacedWait wait_;
};

}  // namespace ferry
