#pragma once

// Addresses as users and workers write them: HOST:PORT, and unix:/PATH on one host.

#include <string>

#include "common/status.h"

namespace ferry {

inline constexpr int kCoordinatorPort = 8090;  // of the API, where nothing else is said
inline constexpr int kClusterPort = 8091;      // of the cluster's own plane

struct ListenAddress {
  std::string host;  // IPv6 in brackets
  int port = 0;
  bool loopback = false;         // reachable from this machine alone
  bool any = false;              // every interface of the machine: 0.0.0.0, [::]; to listen on, not to connect to
  std::string unix_path;         // of a Unix socket, absolute: then there is neither host nor port, and it is loopback
  std::string ToString() const;  // "host:port", "unix:/path"
};

// "127.0.0.1:8090", "[::1]:8090" and "unix:/run/ferry" stay; "0.0.0.0" gets the port; InvalidArgument: no host, brackets without
// an IPv6 address in them, a port that is none, or the path of a Unix socket that is not absolute, has control characters or more
// than 100 bytes.
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text, int default_port);

// A host as the resolver takes it: an IPv6 address without its brackets.
std::string WithoutBrackets(const std::string& host);

// NotFound: nothing has the host's name. OK: it has an address, or nobody could be asked. May take as long as the system's
// resolver does.
absl::Status CheckHostExists(const ListenAddress& address);

// The address, without a port, of this machine's interface towards `peer`, at which peer and its network reach this machine.
// Sends nothing. Unavailable: the name of peer's host is unknown, or there is no route to it.
absl::StatusOr<std::string> LocalHostTowards(const ListenAddress& peer);

}  // namespace ferry
