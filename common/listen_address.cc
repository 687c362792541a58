#include "common/listen_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <memory>
#include <string_view>

#include "common/unique_fd.h"

namespace ferry {

constexpr std::string_view kUnix = "unix:";
constexpr size_t kMaxUnixPath = 100;  // sockaddr_un has room for 107

std::string ListenAddress::ToString() const {
  return unix_path.empty() ? absl::StrFormat("%s:%d", host, port) : absl::StrFormat("%s%s", kUnix, unix_path);
}

namespace {

// Whether `host` has no brackets, or is an IPv6 address in brackets.
bool HasBracketsInPlace(const std::string& host) {
  if (host.find_first_of("[]") == std::string::npos) return true;
  if (!host.starts_with('[') || host.find(']') != host.size() - 1) return false;
  in6_addr address;
  return ::inet_pton(AF_INET6, host.substr(1, std::min(host.find('%'), host.size() - 1) - 1).c_str(), &address) == 1;
}

}  // namespace

std::string WithoutBrackets(const std::string& host) {
  return host.starts_with('[') && host.ends_with(']') ? host.substr(1, host.size() - 2) : host;
}

absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text, int default_port) {
  if (text.starts_with(kUnix)) {
    ListenAddress local{.loopback = true, .unix_path = text.substr(kUnix.size())};
    const std::string& path = local.unix_path;
    const bool printable = std::none_of(path.begin(), path.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; });
    if (!path.starts_with('/') || path.size() > kMaxUnixPath || !printable) {
      return InvalidArgument("a Unix socket's path is absolute, printable and of at most %d bytes; this one has %d", kMaxUnixPath,
                             path.size());
    }
    return local;
  }
  for (const std::string_view scheme : {"http://", "https://", "grpc://", "dns:", "ipv4:", "ipv6:"}) {
    if (text.starts_with(scheme)) {
      return InvalidArgument("'%s' begins with %s: say HOST or HOST:PORT alone, as in 127.0.0.1:8090", text, scheme);
    }
  }
  if (std::any_of(text.begin(), text.end(), [](unsigned char c) { return c <= ' ' || c >= 0x7f || c == '/'; })) {
    return InvalidArgument("'%s' is no address: want HOST or HOST:PORT, without spaces, slashes and other letters than ASCII",
                           text);
  }
  ListenAddress address{.host = text, .port = default_port};
  const size_t bracket = text.rfind(']');
  const size_t colon = text.rfind(':');
  const bool ipv6_without_port = text.starts_with('[') && colon != std::string::npos && colon < bracket;
  if (colon != std::string::npos && !ipv6_without_port) {
    address.host = text.substr(0, colon);
    const std::string_view port = std::string_view(text).substr(colon + 1);
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
    if (port.empty() || error != std::errc() || end != port.data() + port.size() || address.port < 0 || address.port > 65535) {
      return InvalidArgument("'%s' has the port '%s', want 0 to 65535", text, port);
    }
  }
  if (address.host.empty()) return InvalidArgument("'%s' names no host: say 127.0.0.1, or 0.0.0.0 for all interfaces", text);
  if (address.host.find(':') != std::string::npos && !address.host.starts_with('[')) {
    return InvalidArgument("'%s': an IPv6 address goes in brackets, as in [::1]:8090", text);
  }
  if (!HasBracketsInPlace(address.host)) {
    return InvalidArgument("'%s': brackets hold an IPv6 address, as in [::1]:8090", text);
  }
  address.loopback = address.host == "localhost" || address.host == "[::1]" || address.host.starts_with("127.");
  address.any = address.host == "0.0.0.0" || address.host == "[::]";
  return address;
}

absl::Status CheckHostExists(const ListenAddress& address) {
  if (!address.unix_path.empty()) return absl::OkStatus();
  const addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(WithoutBrackets(address.host).c_str(), nullptr, &hints, &found);
  if (error == 0) ::freeaddrinfo(found);
  if (error != EAI_NONAME && error != EAI_NODATA) return absl::OkStatus();
  return NotFound("there is no host '%s': %s", address.host, gai_strerror(error));
}

absl::StatusOr<std::string> LocalHostTowards(const ListenAddress& peer) {
  const std::string name = WithoutBrackets(peer.host);
  const addrinfo hints = {.ai_flags = AI_NUMERICSERV, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM};
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(name.c_str(), std::to_string(peer.port).c_str(), &hints, &found);
  if (error != 0) return Unavailable("'%s' is not known: %s", peer.host, gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> candidates(found, ::freeaddrinfo);
  absl::Status why = Unavailable("'%s' has no address", peer.host);
  for (const addrinfo* candidate = found; candidate != nullptr; candidate = candidate->ai_next) {
    // Connecting a datagram socket chooses a route and sends nothing.
    const UniqueFd socket(::socket(candidate->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage local = {};
    socklen_t length = sizeof(local);
    char text[INET6_ADDRSTRLEN];
    if (!socket.valid() || ::connect(socket.get(), candidate->ai_addr, candidate->ai_addrlen) != 0 ||
        ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&local), &length) != 0) {
      why = Unavailable("no way to %s: %s", peer.host, absl::ErrnoToStatus(errno, "").message());
      continue;
    }
    const bool ipv6 = local.ss_family == AF_INET6;
    const void* const raw = ipv6 ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(local).sin6_addr)
                                 : static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(local).sin_addr);
    if (::inet_ntop(local.ss_family, raw, text, sizeof(text)) == nullptr) continue;
    return ipv6 ? absl::StrFormat("[%s]", text) : std::string(text);
  }
  return why;
}

}  // namespace ferry
