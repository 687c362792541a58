#pragma once

// What the requests of each key use, and whether one more may begin: parallel requests, and tokens a minute. Fairness among
// requests that wait is the scheduler's.

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "common/access/api_keys.h"
#include "common/clock.h"
#include "common/status.h"

namespace ferry {

// Thread-safe. `clock` must outlive it.
class KeyUsage {
 public:
  explicit KeyUsage(const Clock* clock) : clock_(*clock) {}

  // A request begins; End follows exactly when this is OK. ResourceExhausted names the limit, and when to come again.
  absl::Status Begin(const Principal& principal);
  // The request has ended, after `tokens` of prompt and output. They count against the minute's budget only now: requests that
  // run at once may exceed it, and later ones wait until the excess has been made good.
  void End(const Principal& principal, int64_t tokens);

 private:
  struct Key {
    int64_t running = 0;
    double budget = 0;  // tokens that may still begin; negative after a large request
    absl::Time filled = absl::InfinitePast();
  };
  // The budget grows by tokens_per_minute a minute, up to that.
  void FillLocked(const Principal& principal, Key& key);

  const Clock& clock_;
  std::mutex mutex_;
  std::map<std::string, Key> keys_;  // by name; those that are in the file or were, so bounded
};

}  // namespace ferry
