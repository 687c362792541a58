#include "cli/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "common/number.h"

namespace ferry {
namespace {

std::string Variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

ServiceManager::ServiceManager() : address_(Variable("NOTIFY_SOCKET")) {
  if (address_.empty() || (address_[0] != '/' && address_[0] != '@') || address_.size() >= sizeof(sockaddr_un::sun_path)) {
    address_.clear();
    return;
  }
  socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // The interval may be meant for another process, whose environment this one inherited.
  const std::string pid = Variable("WATCHDOG_PID");
  if (!pid.empty() && pid != std::to_string(getpid())) return;
  const absl::StatusOr<int64_t> microseconds =
      ParseInteger(Variable("WATCHDOG_USEC"), 1, std::numeric_limits<int64_t>::max() / 1000);
  if (microseconds.ok()) watchdog_ = absl::Microseconds(*microseconds);
}

void ServiceManager::Notify(const std::string& assignments) const {
  if (address_.empty() || socket_.get() < 0) return;
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  std::memcpy(address.sun_path, address_.data(), address_.size());
  if (address_[0] == '@') address.sun_path[0] = '\0';  // a name that is in no folder
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  [[maybe_unused]] const ssize_t sent = ::sendto(socket_.get(), assignments.data(), assignments.size(), MSG_NOSIGNAL,
                                                 reinterpret_cast<const sockaddr*>(&address), size);
}

}  // namespace ferry
