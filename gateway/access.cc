#include "gateway/access.h"

#include "common/log.h"

namespace ferry {
namespace {

constexpr absl::Duration kLook = absl::Seconds(1);

}  // namespace

absl::Status KeyedAccess::Check(const HttpRequest& request) {
  ReloadNowAndThen();
  std::string_view key = BearerToken(request.Header("authorization"));
  if (key.empty()) key = request.Header("x-api-key");
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
