#pragma once

// The two ends of common/shm/descriptor_socket without its manners, for tests and fuzzers that play a hostile peer.

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/unique_fd.h"

namespace ferry {

inline constexpr size_t kMostRawDescriptors = 253;  // SCM_MAX_FD: the kernel's limit for a message

inline std::pair<sockaddr_un, socklen_t> RawAddress(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
}

// Invalid when it does not work.
inline UniqueFd CallRaw(const std::string& name) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const auto [address, length] = RawAddress(name);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) return UniqueFd();
  return socket;
}
inline UniqueFd ListenRaw(const std::string& name) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const auto [address, length] = RawAddress(name);
  const bool bound = ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0;
  return bound && ::listen(socket.get(), 16) == 0 ? std::move(socket) : UniqueFd();
}

// One message with any number of descriptors beside it.
inline bool SendRaw(int socket, const std::string& bytes, const std::vector<int>& fds) {
  iovec data = {const_cast<char*>(bytes.data()), bytes.size()};
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

struct RawMessage {
  std::string bytes;  // empty: the other end hung up
  std::vector<UniqueFd> fds;
};
inline RawMessage ReceiveRaw(int socket) {
  char bytes[256];
  iovec data = {bytes, sizeof(bytes)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostRawDescriptors)];
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  RawMessage received;
  const ssize_t length = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (length <= 0) return received;
  received.bytes.assign(bytes, static_cast<size_t>(length));
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= header->cmsg_len; at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, reinterpret_cast<char*>(header) + at, sizeof(int));
      received.fds.emplace_back(fd);
    }
  }
  return received;
}

}  // namespace ferry
