#pragma once

// What systemd is told of a service (sd_notify): that it is up, what it is doing, and that it is alive. Without NOTIFY_SOCKET in
// the environment everything here does nothing.

#include <string>

#include "absl/time/time.h"
#include "common/unique_fd.h"

namespace ferry {

class ServiceManager {
 public:
  // Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
  ServiceManager();

  // Sends assignments such as "READY=1", one a line. A manager that does not take them is no error.
  void Notify(const std::string& assignments) const;
  // How often the manager has to hear "WATCHDOG=1"; infinite when it does not ask for it.
  absl::Duration watchdog() const { return watchdog_; }

 private:
  std::string address_;  // empty: there is no manager
  UniqueFd socket_;
  absl::Duration watchdog_ = absl::InfiniteDuration();
};

}  // namespace ferry
