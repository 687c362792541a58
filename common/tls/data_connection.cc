#include "common/tls/data_connection.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/peer_keepalive.h"
#include "common/shm/futex.h"
#include "common/signal_cleanup.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr int kBacklog = 512;
// The first that both ends have is taken. A key of 128 bits costs a third less time than one of 256.
constexpr char kCiphers[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr int kSocketBytes = 4 << 20;  // of a socket's buffers: a prompt's contributions arrive while the receiver computes

struct FreeSsl {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};
using Context = std::unique_ptr<SSL_CTX, FreeSsl>;

// What OpenSSL says of its last failure, and forgets then.
std::string WhyTlsFailed() {
  char text[256] = "no reason given";
  if (const unsigned long code = ERR_get_error(); code != 0) ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  return text;
}

absl::StatusOr<Context> ContextOf(const std::string& folder, const SSL_METHOD* method) {
  ERR_clear_error();
  Context context(SSL_CTX_new(method));
  if (context == nullptr) return Internal("TLS cannot start: %s", WhyTlsFailed());
  const bool ready = SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION) == 1 &&
                     SSL_CTX_set_ciphersuites(context.get(), kCiphers) == 1 &&
                     SSL_CTX_use_certificate_chain_file(context.get(), NodeCertificatePath(folder).c_str()) == 1 &&
                     SSL_CTX_use_PrivateKey_file(context.get(), NodeKeyPath(folder).c_str(), SSL_FILETYPE_PEM) == 1 &&
                     SSL_CTX_load_verify_locations(context.get(), CaCertificatePath(folder).c_str(), nullptr) == 1;
  if (!ready) return FailedPrecondition("the certificates of %s cannot be used: %s", folder, WhyTlsFailed());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  return context;
}

// Waits for `events` on a socket, or for no reason. False: there was none until `deadline`.
bool PollUntil(int socket, short events, Deadline deadline) {
  pollfd waiting = {.fd = socket, .events = events, .revents = 0};
  const absl::Duration left = std::clamp(deadline.Remaining(), absl::ZeroDuration(), absl::Seconds(3600));
  const timespec timeout = absl::ToTimespec(left);
  return ::ppoll(&waiting, 1, &timeout, nullptr) != 0;
}

void SetOption(int socket, int level, int option, int value) { ::setsockopt(socket, level, option, &value, sizeof(value)); }

// The system asks an end that is silent, and breaks the connection without an answer. It does not ask while bytes of this end
// wait to be confirmed, for a quarter of an hour: FellSilent sees that. TCP_USER_TIMEOUT would as well, but it also breaks the
// connection to a stage that computes for long and does not read meanwhile.
void AskWhenSilent(int socket) {
  constexpr int kQuestions = 5;
  SetOption(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(socket, IPPROTO_TCP, TCP_KEEPIDLE, kPeerKeepaliveMs / 1000);
  SetOption(socket, IPPROTO_TCP, TCP_KEEPINTVL, kPeerKeepaliveTimeoutMs / 1000 / kQuestions);
  SetOption(socket, IPPROTO_TCP, TCP_KEEPCNT, kQuestions);
}

// Whether the other end of a TCP connection has not confirmed what was sent to it several times.
bool FellSilent(int socket) {
  constexpr int kTries = 4;  // take seconds, since each waits twice as long as the one before
  tcp_info info = {};
  socklen_t length = sizeof(info);
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return false;
  const bool unanswered = info.tcpi_retransmits >= kTries || info.tcpi_probes >= kTries;
  return unanswered && info.tcpi_last_ack_recv >= kPeerKeepaliveMs + kPeerKeepaliveTimeoutMs;
}

void Prepare(int socket, bool tcp) {
  ::fcntl(socket, F_SETFL, ::fcntl(socket, F_GETFL) | O_NONBLOCK);
  for (const int buffer : {SO_SNDBUF, SO_RCVBUF}) {
    // A size that is set is not tuned any more, and what the system allows a process to set is often too small for TCP.
    if (!tcp) SetOption(socket, SOL_SOCKET, buffer, kSocketBytes);
  }
  if (!tcp) return;
  SetOption(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  AskWhenSilent(socket);
}

// Waits as common/shm/paced_wait.h does, but without yielding the core while it spins: what is waited for comes from another
// machine, so no thread here could bring it. On a busy core a yield gives a whole time slice away: an exchange that takes 0.2 ms
// took 20 ms beside compilers.
class Pace {
 public:
  // Waits until done() is true or `deadline` has passed; returns whether done() was. sleep(until) may return early.
  template <typename Done, typename Sleep>
  bool Wait(Deadline deadline, const Done& done, const Sleep& sleep) {
    const Stopwatch waiting;
    bool came = done();
    const absl::Duration expected = *std::min_element(last_.begin(), last_.end());
    if (!came && expected > kSpin) {
      const Deadline early = std::min(deadline, Deadline::In(expected - kSpin / 2));
      while (!came && !early.Passed()) {
        sleep(early);
        came = done();
      }
    }
    for (const Deadline end = std::min(deadline, Deadline::In(kSpin)); !came && !end.Passed();) {
      SpinPause();
      came = done();
    }
    while (!came && !deadline.Passed()) {
      sleep(deadline);
      came = done();
    }
    if (came) last_[next_++ % last_.size()] = waiting.Elapsed();
    return came;
  }

 private:
  static constexpr absl::Duration kSpin = absl::Microseconds(150);

  std::array<absl::Duration, 3> last_ = {};  // lengths of the last waits; the shortest is expected
  size_t next_ = 0;
};

constexpr absl::Duration kLookInterval = absl::Seconds(1);  // how late a silent end may be noticed

enum class Want { kNothing, kRead, kWrite };

class SocketConnection final : public DataConnection {
 public:
  SocketConnection(UniqueFd socket, Context context) : socket_(std::move(socket)), context_(std::move(context)) {}

  // Before the first words of TLS. A Unix socket has none, nor needs this.
  absl::Status BeginGreeting(const DataIdentity& identity) {
    if (context_ == nullptr) return absl::OkStatus();
    ERR_clear_error();
    peer_ = NodeName(identity.peer);
    ssl_.reset(SSL_new(context_.get()));
    if (ssl_ == nullptr || SSL_set_fd(ssl_.get(), socket_.get()) != 1) return Internal("TLS cannot start: %s", WhyTlsFailed());
    // Hosts change their addresses: certificates name roles, not hosts.
    const bool named = SSL_set1_host(ssl_.get(), peer_.c_str()) == 1 &&
                       (!identity.or_coordinator || SSL_add1_host(ssl_.get(), NodeName(NodeRole::kCoordinator).c_str()) == 1);
    return named ? absl::OkStatus() : Internal("TLS cannot start: %s", WhyTlsFailed());
  }
  // Says and hears as much of the first words as it can without waiting. False: more is to come, once WaitedFor() is there.
  absl::StatusOr<bool> GoOnGreeting(bool accepting) {
    if (context_ == nullptr) return true;
    ERR_clear_error();
    const int done = accepting ? SSL_accept(ssl_.get()) : SSL_connect(ssl_.get());
    want_ = Want::kNothing;
    if (done == 1) return true;
    const int error = SSL_get_error(ssl_.get(), done);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
      return absl::PermissionDeniedError("the other end is no " + peer_ + " of this cluster: " + WhyTlsFailed());
    }
    want_ = error == SSL_ERROR_WANT_READ ? Want::kRead : Want::kWrite;
    return false;
  }
  pollfd WaitedFor() const {
    return {.fd = socket_.get(), .events = static_cast<short>(want_ == Want::kWrite ? POLLOUT : POLLIN), .revents = 0};
  }

  absl::Status Send(std::span<const std::byte> bytes, Deadline deadline) override {
    while (!bytes.empty()) {
      ASSIGN_OR_RETURN(const size_t sent, Write(bytes));
      bytes = bytes.subspan(sent);
      if (sent > 0) continue;
      if (deadline.Passed()) return DeadlineExceeded("the other end does not read");
      Await(want_ == Want::kRead ? POLLIN : POLLOUT, deadline);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> ReceiveSome(std::span<std::byte> bytes, Deadline deadline) override {
    absl::StatusOr<size_t> came = size_t{0};
    if (bytes.empty()) return came;
    const auto some = [&] {
      came = Read(bytes);
      return !came.ok() || *came > 0;
    };
    pace_.Wait(deadline, some, [this](Deadline until) { PollToRead(until); });
    return came;
  }

  absl::Status Receive(std::span<std::byte> bytes, Deadline deadline) override {
    ASSIGN_OR_RETURN(size_t came, ReceiveSome(bytes, deadline));
    bytes = bytes.subspan(came);
    while (came > 0 && !bytes.empty()) {  // the rest follows at the network's rate
      ASSIGN_OR_RETURN(came, Read(bytes));
      while (came == 0 && !deadline.Passed()) {
        PollToRead(deadline);
        ASSIGN_OR_RETURN(came, Read(bytes));
      }
      bytes = bytes.subspan(came);
    }
    return bytes.empty() ? absl::OkStatus() : DeadlineExceeded("%d bytes did not come in time", bytes.size());
  }

  void AwaitBytes(Deadline deadline) override { PollUntil(socket_.get(), POLLIN, deadline); }
  void Cut() override { ::shutdown(socket_.get(), SHUT_RDWR); }

 private:
  // Bytes that were sent or read; 0: none can be now, and want_ says what to wait for.
  absl::StatusOr<size_t> Write(std::span<const std::byte> bytes) {
    if (silent_) return Silence();
    if (ssl_ == nullptr) return Moved(::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), Want::kWrite);
    errno = 0;
    ERR_clear_error();
    size_t sent = 0;
    return SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &sent) == 1 ? absl::StatusOr<size_t>(sent) : TlsStopped();
  }
  absl::StatusOr<size_t> Read(std::span<std::byte> bytes) {
    if (silent_) return Silence();
    if (ssl_ == nullptr) {
      const ssize_t read = ::recv(socket_.get(), bytes.data(), bytes.size(), 0);
      if (read == 0) return Unavailable("the other end has closed the connection");
      return Moved(read, Want::kRead);
    }
    errno = 0;
    ERR_clear_error();
    size_t read = 0;
    return SSL_read_ex(ssl_.get(), bytes.data(), bytes.size(), &read) == 1 ? absl::StatusOr<size_t>(read) : TlsStopped();
  }
  void PollToRead(Deadline deadline) { Await(want_ == Want::kWrite ? POLLOUT : POLLIN, deadline); }
  // Returns early at times. Whether the other end fell silent is looked at here alone: an end that is there ends these waits.
  void Await(short events, Deadline deadline) {
    if (!PollUntil(socket_.get(), events, std::min(deadline, Deadline::In(kLookInterval)))) silent_ = FellSilent(socket_.get());
  }
  static absl::Status Silence() {
    return Unavailable("the connection is lost: no answer for %d s", (kPeerKeepaliveMs + kPeerKeepaliveTimeoutMs) / 1000);
  }
  absl::StatusOr<size_t> Moved(ssize_t bytes, Want otherwise) {
    want_ = bytes >= 0 ? Want::kNothing : otherwise;
    if (bytes >= 0) return static_cast<size_t>(bytes);
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return size_t{0};
    return Unavailable("the connection is lost: %s", std::strerror(errno));
  }
  absl::StatusOr<size_t> TlsStopped() {
    switch (SSL_get_error(ssl_.get(), 0)) {
      case SSL_ERROR_WANT_READ:
        want_ = Want::kRead;
        return size_t{0};
      case SSL_ERROR_WANT_WRITE:
        want_ = Want::kWrite;
        return size_t{0};
      case SSL_ERROR_ZERO_RETURN:
        return Unavailable("the other end has closed the connection");
      default:
        return Unavailable("the connection is lost: %s", errno != 0 ? std::strerror(errno) : WhyTlsFailed());
    }
  }

  const UniqueFd socket_;
  const Context context_;  // null, as ssl_, on a Unix socket
  std::string peer_;       // the role that the other end has to have
  std::unique_ptr<SSL, FreeSsl> ssl_;
  Want want_ = Want::kNothing;
  bool silent_ = false;
  Pace pace_;
};

// -------------------------------------------------------------------------------------------------------------------
// sockets

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

absl::StatusOr<SocketAddress> Resolve(const ListenAddress& address, bool to_listen) {
  SocketAddress result;
  if (!address.unix_path.empty()) {
    sockaddr_un* const local = reinterpret_cast<sockaddr_un*>(&result.storage);
    local->sun_family = AF_UNIX;
    std::memcpy(local->sun_path, address.unix_path.c_str(), address.unix_path.size() + 1);  // ParseListenAddress bounds it
    result.length = sizeof(sockaddr_un);
    return result;
  }
  const addrinfo hints = {
      .ai_flags = AI_NUMERICSERV | (to_listen ? AI_PASSIVE : 0), .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(WithoutBrackets(address.host).c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) return Unavailable("%s: %s", address.ToString(), gai_strerror(error));
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.length = found->ai_addrlen;
  ::freeaddrinfo(found);
  return result;
}

absl::Status CheckUser(int socket) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && (peer.uid == ::geteuid() || peer.uid == 0)) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError("the other end of the socket is another user's");
}

absl::Status TooSlow() { return DeadlineExceeded("the other end did not finish the first words of TLS in time"); }

// A connection that may begin its greeting.
absl::StatusOr<std::unique_ptr<SocketConnection>> ConnectionOver(UniqueFd socket, bool local, const DataIdentity& identity,
                                                                 bool accepting) {
  Prepare(socket.get(), /*tcp=*/!local);
  Context context;
  if (local) {
    RETURN_IF_ERROR(CheckUser(socket.get()));
  } else {
    ASSIGN_OR_RETURN(context, ContextOf(identity.folder, accepting ? TLS_server_method() : TLS_client_method()));
  }
  auto connection = std::make_unique<SocketConnection>(std::move(socket), std::move(context));
  RETURN_IF_ERROR(connection->BeginGreeting(identity));
  return connection;
}

// At most this many callers greet at once. Another one takes the place of the oldest, so that callers who say nothing keep nobody
// out.
constexpr size_t kMaxGreeting = 64;
constexpr absl::Duration kAfterFailedAccept = absl::Milliseconds(100);

class SocketListener final : public DataListener {
 public:
  SocketListener(UniqueFd socket, ListenAddress address, DataIdentity identity)
      : socket_(std::move(socket)), address_(std::move(address)), identity_(std::move(identity)) {
    if (!address_.unix_path.empty()) removed_on_signal_.emplace(address_.unix_path);
  }
  ~SocketListener() override {
    if (!address_.unix_path.empty()) ::unlink(address_.unix_path.c_str());
  }

  const ListenAddress& address() const override { return address_; }

  absl::StatusOr<std::unique_ptr<DataConnection>> Accept(Deadline deadline, absl::Duration handshake) override {
    while (true) {
      RETURN_IF_ERROR(TakeCallers(handshake));
      for (size_t i = 0; i < greeting_.size(); ++i) {
        const absl::StatusOr<bool> done = greeting_[i].connection->GoOnGreeting(/*accepting=*/true);
        if (done.ok() && !*done && !greeting_[i].until.Passed()) continue;
        std::unique_ptr<SocketConnection> connection = std::move(greeting_[i].connection);
        greeting_.erase(greeting_.begin() + static_cast<ptrdiff_t>(i));
        RETURN_IF_ERROR(done.status());
        if (!*done) return TooSlow();
        return connection;
      }
      if (deadline.Passed()) return nullptr;
      PollCallers(deadline);
    }
  }

 private:
  struct Greeting {
    std::unique_ptr<SocketConnection> connection;
    Deadline until;
  };

  // Takes all who have called by now. Errors are those of a caller, or of the system.
  absl::Status TakeCallers(absl::Duration handshake) {
    while (true) {
      UniqueFd accepted(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!accepted.valid()) {
        const int error = errno;
        if (error == EINTR || error == ECONNABORTED) continue;
        if (error == EAGAIN) return absl::OkStatus();
        absl::SleepFor(kAfterFailedAccept);  // a process without descriptors is asked again at once
        return absl::ErrnoToStatus(error, "accept");
      }
      ASSIGN_OR_RETURN(std::unique_ptr<SocketConnection> connection,
                       ConnectionOver(std::move(accepted), !address_.unix_path.empty(), identity_, /*accepting=*/true));
      if (greeting_.size() == kMaxGreeting) greeting_.erase(greeting_.begin());
      greeting_.push_back({.connection = std::move(connection), .until = Deadline::In(handshake)});
    }
  }

  // Until somebody calls, or goes on greeting, or a time has passed.
  void PollCallers(Deadline deadline) const {
    std::vector<pollfd> waiting = {{.fd = socket_.get(), .events = POLLIN, .revents = 0}};
    for (const Greeting& greeting : greeting_) {
      waiting.push_back(greeting.connection->WaitedFor());
      deadline = std::min(deadline, greeting.until);
    }
    const timespec timeout = absl::ToTimespec(std::clamp(deadline.Remaining(), absl::ZeroDuration(), absl::Seconds(3600)));
    ::ppoll(waiting.data(), waiting.size(), &timeout, nullptr);
  }

  const UniqueFd socket_;
  const ListenAddress address_;
  const DataIdentity identity_;
  std::optional<RemovedOnSignal> removed_on_signal_;
  std::vector<Greeting> greeting_;  // the oldest first
};

}  // namespace

absl::StatusOr<std::unique_ptr<DataConnection>> DataConnection::Connect(const ListenAddress& address,
                                                                        const DataIdentity& identity, Deadline deadline) {
  ASSIGN_OR_RETURN(const SocketAddress to, Resolve(address, /*to_listen=*/false));
  UniqueFd socket(::socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return absl::ErrnoToStatus(errno, "a socket cannot be made");
  if (::connect(socket.get(), to.get(), to.length) != 0) {
    if (errno != EINPROGRESS) return Unavailable("%s: %s", address.ToString(), std::strerror(errno));
    int error = 0;
    socklen_t length = sizeof(error);
    pollfd connecting = {.fd = socket.get(), .events = POLLOUT, .revents = 0};
    while (connecting.revents == 0) {
      if (deadline.Passed()) return DeadlineExceeded("%s does not answer", address.ToString());
      const timespec timeout = absl::ToTimespec(std::clamp(deadline.Remaining(), absl::ZeroDuration(), absl::Seconds(60)));
      ::ppoll(&connecting, 1, &timeout, nullptr);
    }
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return Unavailable("%s: %s", address.ToString(), std::strerror(error));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<SocketConnection> connection,
                   ConnectionOver(std::move(socket), !address.unix_path.empty(), identity, /*accepting=*/false));
  while (true) {
    ASSIGN_OR_RETURN(const bool done, connection->GoOnGreeting(/*accepting=*/false));
    if (done) return connection;
    if (deadline.Passed()) return TooSlow();
    const pollfd waiting = connection->WaitedFor();
    PollUntil(waiting.fd, waiting.events, deadline);
  }
}

absl::StatusOr<std::unique_ptr<DataListener>> DataListener::Listen(const ListenAddress& address, const DataIdentity& identity) {
  ASSIGN_OR_RETURN(const SocketAddress at, Resolve(address, /*to_listen=*/true));
  UniqueFd socket(::socket(at.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return absl::ErrnoToStatus(errno, "a socket cannot be made");
  SetOption(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  const bool local = !address.unix_path.empty();
  if (::bind(socket.get(), at.get(), at.length) != 0 || ::listen(socket.get(), kBacklog) != 0) {
    return FailedPrecondition("cannot listen on %s: %s", address.ToString(), std::strerror(errno));
  }
  if (local) ::chmod(address.unix_path.c_str(), 0600);
  ListenAddress bound = address;
  sockaddr_storage own = {};
  socklen_t length = sizeof(own);
  if (!local && ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &length) == 0) {
    bound.port = ntohs(own.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(own).sin6_port
                                                 : reinterpret_cast<const sockaddr_in&>(own).sin_port);
  }
  return std::unique_ptr<DataListener>(new SocketListener(std::move(socket), std::move(bound), identity));
}

}  // namespace ferry
