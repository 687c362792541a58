#include "common/access/key_usage.h"

#include <algorithm>
#include <cmath>

#include "common/error_details.h"

namespace ferry {

void KeyUsage::FillLocked(const Principal& principal, Key& key) {
  const absl::Time now = clock_.Now();
  const double most = static_cast<double>(principal.tokens_per_minute);
  if (key.filled == absl::InfinitePast()) {
    key.budget = most;
  } else {
    key.budget = std::min(most, key.budget + most * absl::ToDoubleMinutes(now - key.filled));
  }
  key.filled = now;
}

absl::Status KeyUsage::Begin(const Principal& principal) {
  const std::lock_guard lock(mutex_);
  Key& key = keys_[principal.name];
  if (principal.max_parallel > 0 && key.running >= principal.max_parallel) {
    return ResourceExhausted("the key %s has %d requests at once, its limit", principal.name, key.running);
  }
  if (principal.tokens_per_minute > 0) {
    FillLocked(principal, key);
    if (key.budget <= 0) {
      const double seconds = std::ceil(60 * (1 - key.budget) / static_cast<double>(principal.tokens_per_minute));
      return WithRetry(ResourceExhausted("the key %s has used its %d tokens a minute: come again in %.0f s", principal.name,
                                         principal.tokens_per_minute, seconds),
                       absl::Seconds(seconds));
    }
  }
  ++key.running;
  return absl::OkStatus();
}

void KeyUsage::End(const Principal& principal, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  Key& key = keys_[principal.name];
  --key.running;
  if (principal.tokens_per_minute == 0) return;
  FillLocked(principal, key);
  key.budget -= static_cast<double>(tokens);
}

}  // namespace ferry
