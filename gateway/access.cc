#include "gateway/access.h"

#include "common/log.h"

namespace ferry {
namespace {

constexpr absl::Duration kLook = absl::Seconds(1);

}  // namespace

std::string_view KeyOf(const HttpRequest& request) {
  const std::string_view key = BearerToken(request.Header("authorization"));
  return key.empty() ? request.Header("x-api-key") : key;
}

absl::Status KeyedAccess::Check(const HttpRequest& request) {
  ReloadNowAndThen();
  const std::string_view key = KeyOf(request);
  if (key.empty()) return absl::UnauthenticatedError("this server wants a key: Authorization: Bearer KEY, or x-api-key: KEY");
  return keys_->Authenticate(key).status();
}

void KeyedAccess::ReloadNowAndThen() {
  {
    const std::lock_guard lock(mutex_);
    const absl::Time now = clock_.Now();
    if (now < next_look_) return;
    next_look_ = now + kLook;
  }
  if (const absl::Status reloaded = keys_->ReloadIfChanged(); !reloaded.ok()) {
    spdlog::warn("the keys stay as they were: {}", std::string(reloaded.message()));
  }
}

}  // namespace ferry
