#include "common/rpc/acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/log.h"
#include "common/signal_cleanup.h"
#include "common/thread_limit.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr int kBacklog = 512;
constexpr absl::Duration kLogPause = absl::Seconds(1);
constexpr int kNoDescriptorsPauseMs = 20;
constexpr int kProbePatienceMs = 100;

// The address to bind, and its length.
struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

absl::StatusOr<SocketAddress> Resolve(const ListenAddress& address, bool numeric = false) {
  SocketAddress result;
  if (!address.unix_path.empty()) {
    sockaddr_un* const local = reinterpret_cast<sockaddr_un*>(&result.storage);
    local->sun_family = AF_UNIX;
    std::memcpy(local->sun_path, address.unix_path.c_str(), address.unix_path.size() + 1);  // ParseListenAddress bounds it
    result.length = sizeof(sockaddr_un);
    return result;
  }
  const std::string name = WithoutBrackets(address.host);
  const addrinfo hints = {.ai_flags = AI_NUMERICSERV | AI_PASSIVE | (numeric ? AI_NUMERICHOST : 0),
                          .ai_family = AF_UNSPEC,
                          .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(name.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) return FailedPrecondition("cannot listen on %s: %s", address.ToString(), gai_strerror(error));
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.length = found->ai_addrlen;
  ::freeaddrinfo(found);
  return result;
}

bool IsOwnUserOrRoot(int socket) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return false;
  return peer.uid == ::geteuid() || peer.uid == 0;
}

std::string PeerOf(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "unix";
  if (address.ss_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof(text));
  } else if (address.ss_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof(text));
  }
  return text;
}

// Says something at most once a second, with how often it happened.
class SeldomLog {
 public:
  void Warn(const std::string& what) {
    ++times_;
    if (!quiet_until_.Passed()) return;
    spdlog::warn("{} ({} times since this was said last)", what, times_);
    quiet_until_ = Deadline::In(kLogPause);
    times_ = 0;
  }

 private:
  Deadline quiet_until_ = Deadline::In(absl::ZeroDuration());
  int64_t times_ = 0;
};

class AcceptorImpl final : public Acceptor {
 public:
  AcceptorImpl(ListenAddress address, const AcceptorOptions& options, UniqueFd listener, UniqueFd stop)
      : address_(std::move(address)), options_(options), listener_(std::move(listener)), stop_(std::move(stop)) {
    if (!address_.unix_path.empty()) removed_on_signal_.emplace(address_.unix_path);
  }
  ~AcceptorImpl() override { Stop(); }

  const ListenAddress& address() const override { return address_; }

  void AddTo(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials) override {
    using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
    server_ = builder.experimental().AddExternalConnectionAcceptor(Type::FROM_FD, std::move(credentials));
  }

  absl::Status Start() override {
    ASSIGN_OR_RETURN(thread_, StartThread([this] { Run(); }));
    return absl::OkStatus();
  }

  void Stop() override {
    if (std::exchange(stopped_, true)) return;
    const uint64_t one = 1;
    while (::write(stop_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    if (thread_.joinable()) thread_.join();
    listener_ = UniqueFd();
    if (!address_.unix_path.empty()) ::unlink(address_.unix_path.c_str());
    removed_on_signal_.reset();
  }

 private:
  // A connection that gRPC has now. Its descriptor belongs to gRPC, and is open while it has the same inode.
  struct Connection {
    int fd;
    ino_t inode;
    std::string peer;
    bool IsOpen() const {
      struct stat info = {};
      return ::fstat(fd, &info) == 0 && info.st_ino == inode;
    }
  };

  void Run() {
    while (true) {
      if (!reserve_.valid()) reserve_ = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      pollfd polls[] = {{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      if (::poll(polls, 2, -1) < 0 && errno != EINTR) return;
      if (polls[0].revents != 0) return;
      if (polls[1].revents != 0) AcceptOne();
    }
  }

  void AcceptOne() {
    sockaddr_storage peer = {};
    socklen_t length = sizeof(peer);
    UniqueFd socket(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&peer), &length, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE) {
        TurnAwayWithoutDescriptors();
      } else if (errno == ENOBUFS || errno == ENOMEM) {
        no_memory_.Warn("the system has no memory for another connection");
        absl::SleepFor(absl::Milliseconds(kNoDescriptorsPauseMs));
      }
      return;  // otherwise the caller has gone already
    }
    const bool local = !address_.unix_path.empty();
    if (local && !IsOwnUserOrRoot(socket.get())) {
      strangers_.Warn("a process of another user was turned away at " + address_.ToString());
      return;
    }
    const std::string name = local ? "unix" : PeerOf(peer);
    std::erase_if(connections_, [](const Connection& connection) { return !connection.IsOpen(); });
    const auto of_peer =
        std::count_if(connections_.begin(), connections_.end(), [&](const Connection& other) { return other.peer == name; });
    if (static_cast<int64_t>(connections_.size()) >= options_.max_connections) {
      too_many_.Warn(absl::StrFormat("a connection was turned away: there are %d already", connections_.size()));
      return;
    }
    if (of_peer >= options_.max_of_one_peer) {
      too_many_.Warn(absl::StrFormat("a connection from %s was turned away: it has %d already", name, of_peer));
      return;
    }
    if (!local) {
      const int on = 1;
      ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    struct stat info = {};
    if (::fstat(socket.get(), &info) != 0) return;
    connections_.push_back({socket.get(), info.st_ino, name});
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
    parameters.listener_fd = listener_.get();
    parameters.fd = socket.Release();
    server_->HandleNewConnection(&parameters);
  }

  // The connection that waits is taken with a descriptor kept for this, and closed: otherwise it would wait, and keep poll()
  // busy, for ever.
  void TurnAwayWithoutDescriptors() {
    no_descriptors_.Warn("a connection was turned away: this process has no descriptors left (ulimit -n)");
    reserve_ = UniqueFd();
    const UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const bool turned_away = socket.valid();
    if (turned_away) ::shutdown(socket.get(), SHUT_RDWR);
    if (!turned_away) absl::SleepFor(absl::Milliseconds(kNoDescriptorsPauseMs));
  }

  ListenAddress address_;
  const AcceptorOptions options_;
  UniqueFd listener_;
  const UniqueFd stop_;                               // an eventfd
  std::optional<RemovedOnSignal> removed_on_signal_;  // a Unix socket's file
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> server_;
  bool stopped_ = false;
  // Of the thread.
  UniqueFd reserve_;  // a descriptor to turn callers away with when there is no other
  std::vector<Connection> connections_;
  SeldomLog strangers_, too_many_, no_descriptors_, no_memory_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const ListenAddress& address, const AcceptorOptions& options) {
  const bool local = !address.unix_path.empty();
  if (local) {
    RETURN_IF_ERROR(CheckPrivateFolder(std::filesystem::path(address.unix_path).parent_path()));
  }
  ASSIGN_OR_RETURN(const SocketAddress to, Resolve(address));
  UniqueFd listener(::socket(to.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (!listener.valid() || !stop.valid()) return absl::ErrnoToStatus(errno, "a socket cannot be made");
  const int on = 1;
  if (!local) ::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (local && NobodyListens(address)) ::unlink(address.unix_path.c_str());
  if (::bind(listener.get(), to.get(), to.length) != 0 || ::listen(listener.get(), kBacklog) != 0) {
    return FailedPrecondition("cannot listen on %s: %s; is another server there?", address.ToString(), std::strerror(errno));
  }
  ListenAddress bound = address;
  if (local) {
    ::chmod(address.unix_path.c_str(), 0600);
  } else {
    SocketAddress own;
    own.length = sizeof(own.storage);
    if (::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&own.storage), &own.length) != 0) {
      return absl::ErrnoToStatus(errno, "getsockname");
    }
    bound.port = ntohs(own.storage.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(own.storage).sin6_port
                                                         : reinterpret_cast<sockaddr_in&>(own.storage).sin_port);
  }
  return std::unique_ptr<Acceptor>(
      std::make_unique<AcceptorImpl>(std::move(bound), options, std::move(listener), std::move(stop)));
}

bool NobodyListens(const ListenAddress& address) {
  const absl::StatusOr<SocketAddress> to = Resolve(address, /*numeric=*/true);
  if (!to.ok()) return false;
  const UniqueFd probe(::socket(to->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return false;
  if (::connect(probe.get(), to->get(), to->length) == 0) return false;
  if (errno == ECONNREFUSED || errno == ENOENT) return true;
  pollfd poll = {probe.get(), POLLOUT, 0};
  int error = 0;
  socklen_t length = sizeof(error);
  return errno == EINPROGRESS && ::poll(&poll, 1, kProbePatienceMs) > 0 &&
         ::getsockopt(probe.get(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == ECONNREFUSED;
}

int64_t RaiseDescriptorLimit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  rlimit raised = limit;
  raised.rlim_cur = limit.rlim_max;
  if (raised.rlim_cur != limit.rlim_cur && ::setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  return static_cast<int64_t>(limit.rlim_cur);
}

absl::Status CheckPrivateFolder(const std::string& path) {
  struct stat info = {};
  if (::lstat(path.c_str(), &info) != 0) return FailedPrecondition("the folder %s: %s", path, std::strerror(errno));
  if (!S_ISDIR(info.st_mode)) return FailedPrecondition("%s is no folder", path);
  if (info.st_uid != ::geteuid()) return FailedPrecondition("the folder %s belongs to another user", path);
  if ((info.st_mode & 0077) != 0) return FailedPrecondition("others may enter the folder %s: chmod 0700", path);
  return absl::OkStatus();
}

}  // namespace ferry
