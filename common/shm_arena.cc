#include "common/shm_arena.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/unique_fd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // linux/mman.h from 6.1 on; older kernels refuse it
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // from 5.14 on
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // linux/fcntl.h, which clashes with the C library's
#endif

namespace ferry {

namespace {
constexpr int64_t kSmallestPage = 4096;  // of x86-64 and of most others
}  // namespace

// -------------------------------------------------------------------------------------------------------------------
// arena

absl::StatusOr<ShmArena> ShmArena::Create(const std::string& name, int64_t bytes) {
  ShmArena arena;
  ASSIGN_OR_RETURN(arena.memfd_, CreateMemfd(name, bytes, /*try_huge_pages=*/true));
  ASSIGN_OR_RETURN(arena.data_, MapMemfd(arena.memfd_, /*writable=*/true));
  arena.bytes_ = bytes;
  return arena;
}

absl::StatusOr<ShmArena> ShmArena::MapReadOnly(int fd, int64_t bytes) {
  if (bytes < 1) {
    const UniqueFd taken(fd);
    return InvalidArgument("bytes is %d, want at least 1", bytes);
  }
  ShmArena arena;
  ASSIGN_OR_RETURN(arena.memfd_, AdoptMemfd(fd, bytes));
  ASSIGN_OR_RETURN(arena.data_, MapMemfd(arena.memfd_, /*writable=*/false));
  arena.bytes_ = bytes;
  arena.sealed_ = true;
  return arena;
}

ShmArena::ShmArena(ShmArena&& other) noexcept { *this = std::move(other); }

ShmArena& ShmArena::operator=(ShmArena&& other) noexcept {
  std::swap(memfd_, other.memfd_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(sealed_, other.sealed_);
  return *this;
}

ShmArena::~ShmArena() {
  if (data_ != nullptr) ::munmap(data_, memfd_.bytes);
}

bool ShmArena::MakeHugePage(int64_t number) {
  if (memfd_.huge_pages) return true;
  if (number < 0 || number >= memfd_.bytes / kHugePage) return false;
  std::byte* const page = data_ + number * kHugePage;
  // A range of which nothing is there yet is refused.
  const volatile std::byte* const first = page;
  static_cast<void>(*first);
  return ::madvise(page, kHugePage, MADV_COLLAPSE) == 0;
}

void ShmArena::Touch(int64_t offset, int64_t bytes) const {
  if (offset < 0 || bytes <= 0 || offset >= memfd_.bytes) return;
  const int64_t first = offset / kSmallestPage * kSmallestPage;
  ::madvise(data_ + first, std::min(bytes + offset - first, memfd_.bytes - first), MADV_POPULATE_READ);
}

absl::Status ShmArena::Seal() {
  if (data_ == nullptr) return FailedPrecondition("an empty arena cannot be sealed");
  if (sealed_) return FailedPrecondition("the arena is sealed already");
  // FUTURE_WRITE, and not WRITE, because kernels before 6.7 refuse even a read-only shared mapping of a memfd with
  // WRITE.
  RETURN_IF_ERROR(AddSeals(memfd_, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE));
  RETURN_IF_ERROR(AddSeals(memfd_, F_SEAL_SEAL));
  // A new mapping over the old one, which mprotect() cannot make writable again.
  ASSIGN_OR_RETURN(data_, MapMemfd(memfd_, /*writable=*/false, data_));
  sealed_ = true;
  return absl::OkStatus();
}

// --------------------------------------------------------------------------------------------------------------
// descriptors

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
      : name_(std::move(name)), listener_(std::move(listener)), stop_(std::move(stop)), thread_([this] { Run(); }) {}

  ~DescriptorServerImpl() override {
    const uint64_t one = 1;
    while (::write(stop_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    thread_.join();
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
    absl::Time deadline;
  };

  void Run() {
    std::vector<Caller> callers;
    for (;;) {
      std::vector<pollfd> polls = {{stop_.get(), POLLIN, 0},
                                   {callers.size() < kMaxCallers ? listener_.get() : -1, POLLIN, 0}};
      for (const Caller& caller : callers) polls.push_back({caller.socket.get(), POLLIN, 0});
      if (::poll(polls.data(), polls.size(), callers.empty() ? -1 : 100) < 0 && errno != EINTR) return;
      if (polls[0].revents != 0) return;
      for (size_t i = 0; i < callers.size(); ++i) {
        if (polls[i + 2].revents == 0 && absl::Now() < callers[i].deadline) continue;
        if (polls[i + 2].revents != 0) Serve(callers[i].socket.get());
        callers[i].socket = UniqueFd();
      }
      std::erase_if(callers, [](const Caller& caller) { return !caller.socket.valid(); });
      if (polls[1].revents != 0) {
        UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket.valid() && IsOwnUser(socket.get())) {
          callers.push_back({std::move(socket), absl::Now() + kCallerPatience});
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
absl::Status PollUntil(int socket, int16_t events, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = deadline - absl::Now();
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
  return std::unique_ptr<DescriptorServer>(
      std::make_unique<DescriptorServerImpl>(name, std::move(listener), std::move(stop)));
}

absl::StatusOr<std::vector<int>> FetchDescriptors(const std::string& name, const std::string& key,
                                                  absl::Time deadline) {
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
    if (absl::Now() >= deadline) return DeadlineExceeded("'%s' takes no more callers", name);
    absl::SleepFor(absl::Milliseconds(1));
  }
  // An abstract name belongs to whoever took it first.
  if (!IsOwnUser(socket.get())) return absl::PermissionDeniedError("who hands out descriptors is another user");
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
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); length >= 0 && header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + sizeof(int) <= header->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + at, sizeof(int));
      fds.emplace_back(fd);
    }
  }
  if (length != 1) return Unavailable("'%s' hung up", name);
  if (count == 0) return NotFound("no descriptors are offered under that key");
  if (fds.size() != count) return Internal("%d of %d descriptors came through", fds.size(), count);
  std::vector<int> result;
  for (UniqueFd& fd : fds) result.push_back(fd.Release());
  return result;
}

}  // namespace ferry
