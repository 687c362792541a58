#include "common/shm/descriptor_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/thread_limit.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

// One exchange a connection, of SOCK_SEQPACKET: the key goes there, one byte with the number of descriptors comes back
// (0: nothing is offered under that key) with the descriptors beside it.
constexpr size_t kMaxKeyBytes = 64;
constexpr size_t kMaxDescriptors = 16;
constexpr size_t kMaxCallers = 64;                            // at once; more wait in the listen queue
constexpr absl::Duration kCallerPatience = absl::Seconds(2);  // for a caller that says nothing

absl::StatusOr<std::pair<sockaddr_un, socklen_t>> AbstractAddress(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (name.empty() || name.size() > sizeof(address.sun_path) - 1) {
    return InvalidArgument("socket name of %d bytes, want 1 to %d", name.size(), sizeof(address.sun_path) - 1);
  }
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return std::pair(address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size()));
}

// Whether the other end of `socket` runs as our user.
bool IsOwnUser(int socket) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == ::geteuid();
}

union ControlBuffer {
  char bytes[CMSG_SPACE(sizeof(int) * kMaxDescriptors)];
  cmsghdr align;
};

void SendDescriptors(int socket, const std::vector<UniqueFd>& fds) {
  uint8_t count = static_cast<uint8_t>(fds.size());
  iovec data = {&count, 1};
  ControlBuffer control = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    for (size_t i = 0; i < fds.size(); ++i) {
      const int fd = fds[i].get();
      std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
    }
  }
  ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);  // a caller that is gone misses nothing
}

class DescriptorServerImpl final : public DescriptorServer {
 public:
  DescriptorServerImpl(std::string name, UniqueFd listener, UniqueFd stop)
      : name_(std::move(name)), listener_(std::move(listener)), stop_(std::move(stop)) {}

  absl::Status Start() {
    ASSIGN_OR_RETURN(thread_, StartThread([this] { Run(); }));
    return absl::OkStatus();
  }

  ~DescriptorServerImpl() override {
    const uint64_t one = 1;
    while (::write(stop_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    if (thread_.joinable()) thread_.join();
  }

  const std::string& name() const override { return name_; }

  bool Offer(const std::string& key, const std::vector<int>& fds) override {
    if (key.empty() || key.size() > kMaxKeyBytes || fds.empty() || fds.size() > kMaxDescriptors) return false;
    std::vector<UniqueFd> copies;
    for (const int fd : fds) {
      copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
      if (!copies.back().valid()) return false;
    }
    const std::lock_guard lock(mutex_);
    offers_[key] = std::move(copies);
    return true;
  }

  void Withdraw(const std::string& key) override {
    const std::lock_guard lock(mutex_);
    offers_.erase(key);
  }

 private:
  struct Caller {
    UniqueFd socket;
    Deadline deadline;
  };

  void Run() {
    std::vector<Caller> callers;
    for (;;) {
      std::vector<pollfd> polls = {{stop_.get(), POLLIN, 0}, {callers.size() < kMaxCallers ? listener_.get() : -1, POLLIN, 0}};
      for (const Caller& caller : callers) polls.push_back({caller.socket.get(), POLLIN, 0});
      if (::poll(polls.data(), polls.size(), callers.empty() ? -1 : 100) < 0 && errno != EINTR) return;
      if (polls[0].revents != 0) return;
      for (size_t i = 0; i < callers.size(); ++i) {
        if (polls[i + 2].revents == 0 && !callers[i].deadline.Passed()) continue;
        if (polls[i + 2].revents != 0) Serve(callers[i].socket.get());
        callers[i].socket = UniqueFd();
      }
      std::erase_if(callers, [](const Caller& caller) { return !caller.socket.valid(); });
      if (polls[1].revents != 0) {
        UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket.valid() && IsOwnUser(socket.get())) {
          callers.push_back({std::move(socket), Deadline::In(kCallerPatience)});
        }
      }
    }
  }

  void Serve(int socket) {
    char key[kMaxKeyBytes + 1];
    const ssize_t length = ::recv(socket, key, sizeof(key), 0);
    if (length < 1 || static_cast<size_t>(length) > kMaxKeyBytes) return;
    std::vector<UniqueFd> fds;
    {
      const std::lock_guard lock(mutex_);
      if (const auto offer = offers_.find(std::string(key, length)); offer != offers_.end()) {
        fds = std::move(offer->second);
        offers_.erase(offer);
      }
    }
    SendDescriptors(socket, fds);
  }

  const std::string name_;
  const UniqueFd listener_;
  const UniqueFd stop_;  // an eventfd
  std::mutex mutex_;
  std::map<std::string, std::vector<UniqueFd>> offers_;  // guarded by mutex_
  std::thread thread_;                                   // last: it uses all the others
};

// Waits for `events`; DeadlineExceeded.
absl::Status PollUntil(int socket, int16_t events, Deadline deadline) {
  for (;;) {
    const absl::Duration left = deadline.Remaining();
    if (left <= absl::ZeroDuration()) return DeadlineExceeded("no answer about descriptors in time");
    pollfd poll = {socket, events, 0};
    const int64_t milliseconds = std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 1000);
    const int ready = ::poll(&poll, 1, static_cast<int>(milliseconds));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
  }
}

}  // namespace

std::string RandomDescriptorKey() {
  std::random_device random;
  std::string key;
  for (int i = 0; i < 8; ++i) key += absl::StrFormat("%08x", random());
  return key;
}

absl::StatusOr<std::unique_ptr<DescriptorServer>> DescriptorServer::Listen(const std::string& name) {
  ASSIGN_OR_RETURN(const auto address, AbstractAddress(name));
  UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (!listener.valid() || !stop.valid()) return absl::ErrnoToStatus(errno, "a socket cannot be made");
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address.first), address.second) != 0 ||
      ::listen(listener.get(), 64) != 0) {
    return Annotate(absl::ErrnoToStatus(errno, "cannot listen"), name);
  }
  auto server = std::make_unique<DescriptorServerImpl>(name, std::move(listener), std::move(stop));
  RETURN_IF_ERROR(server->Start());
  return std::unique_ptr<DescriptorServer>(std::move(server));
}

absl::StatusOr<std::vector<UniqueFd>> FetchDescriptors(const std::string& name, const std::string& key, Deadline deadline) {
  if (key.empty() || key.size() > kMaxKeyBytes) {
    return InvalidArgument("key of %d bytes, want 1 to %d", key.size(), kMaxKeyBytes);
  }
  ASSIGN_OR_RETURN(const auto address, AbstractAddress(name));
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return absl::ErrnoToStatus(errno, "a socket cannot be made");
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.first), address.second) != 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return Unavailable("nobody hands out descriptors at '%s'", name);
    // The listen queue is full, and poll() does not tell when it is not.
    if (deadline.Passed()) return DeadlineExceeded("'%s' takes no more callers", name);
    absl::SleepFor(absl::Milliseconds(1));
  }
  // An abstract name belongs to the process that took it first.
  if (!IsOwnUser(socket.get()))
    return absl::PermissionDeniedError("the process that hands out descriptors belongs to another user");
  if (::send(socket.get(), key.data(), key.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(key.size())) {
    return Unavailable("'%s' hung up", name);
  }
  RETURN_IF_ERROR(PollUntil(socket.get(), POLLIN, deadline));

  uint8_t count = 0;
  iovec data = {&count, 1};
  ControlBuffer control = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof(control.bytes);
  const ssize_t length = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  std::vector<UniqueFd> fds;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); length >= 0 && header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + sizeof(int) <= header->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + at, sizeof(int));
      fds.emplace_back(fd);
    }
  }
  if (length != 1) return Unavailable("'%s' hung up", name);
  // More than was asked for: bytes behind the count, or descriptors beyond those that there is room for, which the kernel closed.
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return Internal("'%s' sent more than a count and %d descriptors", name, kMaxDescriptors);
  }
  if (fds.size() != count) return Internal("'%s' announced %d descriptors and sent %d", name, count, fds.size());
  if (count == 0) return NotFound("no descriptors are offered under that key");
  return fds;
}

}  // namespace ferry
