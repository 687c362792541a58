#pragma once

// Addresses as users and workers write them, HOST:PORT.

#include <string>

#include "common/status.h"

namespace ferry {

inline constexpr int kCoordinatorPort = 8090;  // where nothing else is said

struct ListenAddress {
  std::string host;  // IPv6 in brackets
  int port = 0;
  bool loopback = false;         // reachable from this machine alone
  bool any = false;              // every interface of the machine: 0.0.0.0, [::]; to listen on, not to connect to
  std::string ToString() const;  // "host:port"
};

// "127.0.0.1:8090" and "[::1]:8090" stay; "0.0.0.0" gets the port; InvalidArgument: no host, or a port that is none.
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text, int default_port);

// The address of this machine, without a port, from which it reaches `peer`: where peer, and whoever else is on that network,
// reaches this machine. Nothing is sent. Unavailable: the name of the host is not known, or there is no way to it.
absl::StatusOr<std::string> LocalHostTowards(const ListenAddress& peer);

}  // namespace ferry
