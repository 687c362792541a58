#pragma once

// The waits of one side of a ring that two processes share, for the counters of the other side.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/shm/futex.h"
#include "common/shm/paced_wait.h"
#include "common/status.h"

namespace ferry {

class RingWait {
 public:
  // `over` is the message of an aborted wait.
  explicit RingWait(std::string over) : over_(std::move(over)) {}

  // As PacedWait says.
  void StayAwake(absl::Duration longest) { wait_.StayAwake(longest); }

  // Running waits for `counters` in this process, and all later ones, return Aborted. Any thread.
  void Abort(std::initializer_list<const std::atomic<uint32_t>*> counters) {
    aborted_ = true;
    for (const std::atomic<uint32_t>* counter : counters) FutexWake(*counter, FutexScope::kShared);
  }

  // Waits until done(), which reads `counter`, is true. DeadlineExceeded or Aborted otherwise. One thread at a time.
  template <typename Done>
  absl::Status Until(const std::atomic<uint32_t>& counter, Deadline deadline, const Done& done) {
    constexpr absl::Duration kLook = absl::Milliseconds(100);  // bounds the sleep if Abort comes between the check and the sleep
    const auto ended = [&] { return aborted_.load(std::memory_order_relaxed) || done(); };
    const bool in_time = wait_.Until(deadline, ended, [&](Deadline until) {
      const uint32_t seen = counter.load(std::memory_order_acquire);
      if (!ended()) FutexWait(counter, seen, std::min(until, Deadline::In(kLook)), FutexScope::kShared);
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
