#pragma once

// The time, injected: code that waits or measures takes a Clock, so that a test moves time instead of sleeping.

#include "absl/time/time.h"

namespace ferry {

class Clock {
 public:
  virtual ~Clock() = default;
  // Never goes back. Thread-safe.
  virtual absl::Time Now() const = 0;
  // The process's clock: the date at the first call, advanced by the monotonic clock, so that setting the machine's
  // date ends no deadline. Never destroyed.
  static Clock* Real();
};

}  // namespace ferry
