#pragma once

// HOST:PORT addresses of processes.

#include <string>

#include "common/status.h"

namespace ferry {

inline constexpr int kCoordinatorPort = 8090;  // the default

struct ListenAddress {
  std::string host;  // IPv6 in brackets
  int port = 0;
  bool loopback = false;         // reachable from this machine alone
  bool any = false;              // every interface of the machine (0.0.0.0, [::]); valid for listening, not for connecting
  std::string ToString() const;  // "host:port"
};

// Parses "127.0.0.1:8090", "[::1]:8090", or a host without a port, which gets the default. InvalidArgument: no host, or an
// invalid port.
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text, int default_port);

// The address, without a port, of this machine's interface towards `peer`, at which peer and its network reach this machine.
// Sends nothing. Unavailable: the name of peer's host is unknown, or there is no route to it.
absl::StatusOr<std::string> LocalHostTowards(const ListenAddress& peer);

}  // namespace ferry
