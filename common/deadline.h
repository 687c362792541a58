#pragma once

// The end of a wait, and the length of one, on the monotonic clock: somebody who sets the machine's date, or a time server that
// corrects it, neither ends a wait nor prolongs it. absl::Now() is for dates: logs, certificates, kept measurements, traces.

#include <algorithm>
#include <chrono>
#include <compare>
#include <ctime>

#include "absl/time/time.h"

namespace ferry {

// A moment at which a wait ends. Condition variables take it as wait_until(lock, deadline.time()).
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;
  static_assert(Clock::is_steady);

  // `timeout` from now. One of zero or less has passed already; one of 100 years or more is Never().
  static Deadline In(absl::Duration timeout) {
    constexpr absl::Duration kLongest = absl::Hours(100 * 365 * 24);
    if (timeout >= kLongest) return Never();
    return Deadline(Clock::now() + absl::ToChronoNanoseconds(std::max(timeout, -absl::Hours(1))));
  }
  static Deadline Never() { return Deadline(Clock::time_point::max()); }

  bool Passed() const { return Clock::now() >= time_; }
  // How long until it; zero or less once it has passed, infinite for Never().
  absl::Duration Remaining() const {
    return *this == Never() ? absl::InfiniteDuration() : absl::FromChrono(time_ - Clock::now());
  }
  Clock::time_point time() const { return time_; }
  // On CLOCK_MONOTONIC, for system calls.
  timespec ToTimespec() const {
    const auto seconds = std::chrono::floor<std::chrono::seconds>(time_.time_since_epoch());
    return {.tv_sec = static_cast<time_t>(seconds.count()),
            .tv_nsec = static_cast<long>(std::chrono::nanoseconds(time_.time_since_epoch() - seconds).count())};
  }

  friend auto operator<=>(const Deadline&, const Deadline&) = default;

 private:
  explicit Deadline(Clock::time_point time) : time_(time) {}

  Clock::time_point time_;
};

// How long it is since the construction or the last Restart().
class Stopwatch {
 public:
  absl::Duration Elapsed() const { return absl::FromChrono(Deadline::Clock::now() - start_); }
  double Seconds() const { return absl::ToDoubleSeconds(Elapsed()); }
  // Returns what had elapsed.
  absl::Duration Restart() {
    const Deadline::Clock::time_point before = start_;
    start_ = Deadline::Clock::now();
    return absl::FromChrono(start_ - before);
  }

 private:
  Deadline::Clock::time_point start_ = Deadline::Clock::now();
};

}  // namespace ferry
