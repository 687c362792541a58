#pragma once

// Keys of HTTP requests: "Authorization: Bearer KEY", as OpenAI's clients send them, or "x-api-key: KEY", as Anthropic's do.

#include <memory>
#include <mutex>
#include <string_view>

#include "absl/time/time.h"
#include "common/access/api_keys.h"
#include "common/clock.h"
#include "gateway/http/message.h"

namespace ferry {

// The key that a request brings; empty: none.
std::string_view KeyOf(const HttpRequest& request);

// Thread-safe.
class KeyedAccess {
 public:
  // `clock` outlives this.
  KeyedAccess(std::unique_ptr<ApiKeys> keys, const Clock* clock) : keys_(std::move(keys)), clock_(*clock) {}

  // Unauthenticated: there is no key, or none of the file. Looks once a second whether the file has changed.
  absl::Status Check(const HttpRequest& request);

 private:
  void ReloadNowAndThen();

  const std::unique_ptr<ApiKeys> keys_;
  const Clock& clock_;
  std::mutex mutex_;
  absl::Time next_look_ = absl::InfinitePast();  // guarded by mutex_
};

}  // namespace ferry
