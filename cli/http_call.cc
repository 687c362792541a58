#include "cli/http_call.h"

#include <fcntl.h>
#include <netdb.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/client_key.h"
#include "cli/late_word.h"
#include "common/http_port.h"
#include "common/listen_address.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr int kConnectMs = 10'000;
constexpr timeval kSendPatience = {.tv_sec = 30, .tv_usec = 0}, kHandshakePatience = {.tv_sec = 10, .tv_usec = 0};
constexpr size_t kMaxHead = size_t{64} << 10, kMaxHeaderLine = 100;
constexpr int kDefaultPort = 80, kDefaultTlsPort = 443;

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
struct FreeSsl {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};

void SetReadPatience(int fd, timeval patience) { ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)); }

absl::StatusOr<UniqueFd> Connect(const HttpServer& server) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(server.host.c_str(), std::to_string(server.port).c_str(), &hints, &found);
  if (error != 0) return Unavailable("the host of %s is not known: %s", server.Url(), gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  int last = ECONNREFUSED;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    UniqueFd fd(::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol));
    if (!fd.valid()) return Unavailable("no socket: %s", std::strerror(errno));
    if (::connect(fd.get(), at->ai_addr, at->ai_addrlen) != 0 && errno != EINPROGRESS) {
      last = errno;
      continue;
    }
    pollfd ready = {.fd = fd.get(), .events = POLLOUT, .revents = 0};
    int result = ETIMEDOUT;
    socklen_t length = sizeof(result);
    if (::poll(&ready, 1, kConnectMs) > 0) ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &result, &length);
    if (result == 0) {
      const int flags = ::fcntl(fd.get(), F_GETFL);
      ::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
      SetReadPatience(fd.get(), kHandshakePatience);
      ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendPatience, sizeof(kSendPatience));
      return fd;
    }
    last = result;
  }
  return Unavailable("nobody answers at %s: %s", server.Url(), std::strerror(last));
}

class Call final : public HttpCall {
 public:
  Call(HttpServer server, absl::Duration patience) : server_(std::move(server)), patience_(patience) {}

  absl::Status Send(const std::string& path, const std::string& body) override {
    ASSIGN_OR_RETURN(const std::string key, KeyFromEnvironment());
    {
      const LateWord word("connecting to " + server_.Url());
      ASSIGN_OR_RETURN(fd_, Connect(server_));
      open_ = fd_.get();
      if (cancelled_) return Broken("");
      if (server_.encrypted) RETURN_IF_ERROR(Encrypt());
      SetReadPatience(fd_.get(), absl::ToTimeval(patience_));
    }
    std::string request = absl::StrCat(body.empty() ? "GET " : "POST ", server_.path, path, " HTTP/1.1\r\nHost: ", HostHeader(),
                                       "\r\nConnection: close\r\nAccept: application/json, text/event-stream\r\n");
    if (!key.empty()) absl::StrAppend(&request, "Authorization: Bearer ", key, "\r\n");
    if (!body.empty()) absl::StrAppend(&request, "Content-Type: application/json\r\nContent-Length: ", body.size(), "\r\n");
    absl::StrAppend(&request, "\r\n", body);
    RETURN_IF_ERROR(Write(request));
    return ReadHead();
  }

  int status() const override { return status_; }

  absl::StatusOr<std::string> Read() override {
    if (chunked_) return ReadChunk();
    if (left_ && *left_ == 0) return std::string();
    if (unread_.empty()) {
      ASSIGN_OR_RETURN(const bool more, Fill());
      if (!more && left_) return Unavailable("%s ended the connection within its answer", server_.Url());
    }
    std::string piece = std::move(unread_);
    unread_.clear();
    if (left_) {
      piece.resize(std::min(piece.size(), *left_));
      *left_ -= piece.size();
    }
    return piece;
  }

  void Cancel() override {
    cancelled_ = true;
    if (const int fd = open_; fd >= 0) ::shutdown(fd, SHUT_RDWR);
  }

 private:
  std::string HostHeader() const {
    const std::string host = absl::StrContains(server_.host, ':') ? "[" + server_.host + "]" : server_.host;
    return absl::StrCat(host, ":", server_.port);
  }

  absl::Status Encrypt() {
    context_.reset(SSL_CTX_new(TLS_client_method()));
    if (context_ == nullptr) return Internal("no TLS");
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    if (const char* const ca = std::getenv("FERRY_TLS_CA"); ca != nullptr && ca[0] != '\0') {
      if (SSL_CTX_load_verify_locations(context_.get(), ca, nullptr) != 1) return NotFound("FERRY_TLS_CA: no CA in '%s'", ca);
    } else {
      SSL_CTX_set_default_verify_paths(context_.get());
    }
    ssl_.reset(SSL_new(context_.get()));
    if (ssl_ == nullptr) return Internal("no TLS");
    SSL_set_fd(ssl_.get(), fd_.get());
    SSL_set_tlsext_host_name(ssl_.get(), server_.host.c_str());
    X509_VERIFY_PARAM* const wanted = SSL_get0_param(ssl_.get());
    if (X509_VERIFY_PARAM_set1_ip_asc(wanted, server_.host.c_str()) != 1) SSL_set1_host(ssl_.get(), server_.host.c_str());
    if (SSL_connect(ssl_.get()) == 1) return absl::OkStatus();
    const long verified = SSL_get_verify_result(ssl_.get());
    return Unavailable("no TLS with %s: %s", server_.Url(),
                       verified == X509_V_OK ? "the handshake failed" : X509_verify_cert_error_string(verified));
  }

  absl::Status Broken(const char* what) const {
    if (cancelled_) return absl::CancelledError("the call was ended");
    return Unavailable("%s %s", server_.Url(), what);
  }

  // A socket with a timeout is interrupted when the process is stopped and goes on (Ctrl-Z and fg): the call is made again.
  bool Interrupted(ssize_t got) const {
    if (got >= 0 || errno != EINTR || cancelled_) return false;
    if (ssl_ == nullptr) return true;
    const int error = SSL_get_error(ssl_.get(), static_cast<int>(got));
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
  }

  absl::Status Write(const std::string& text) {
    for (size_t sent = 0; sent < text.size();) {
      ssize_t got = 0;
      do {
        errno = 0;
        got = ssl_ != nullptr ? SSL_write(ssl_.get(), text.data() + sent, static_cast<int>(text.size() - sent))
                              : ::send(fd_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      } while (Interrupted(got));
      if (got <= 0) return Broken("does not take the request");
      sent += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }

  // Adds to unread_; false: the server has closed the connection.
  absl::StatusOr<bool> Fill() {
    char buffer[16384];
    ssize_t got = 0;
    do {
      errno = 0;
      got = ssl_ != nullptr ? SSL_read(ssl_.get(), buffer, sizeof(buffer)) : ::recv(fd_.get(), buffer, sizeof(buffer), 0);
    } while (Interrupted(got));
    if (cancelled_) return Broken("");
    if (got < 0 && ssl_ == nullptr) {
      const std::string silent = "has said nothing for " + absl::FormatDuration(patience_);
      return Broken(errno == EAGAIN || errno == EWOULDBLOCK ? silent.c_str() : "broke the connection");
    }
    if (got <= 0) return false;
    unread_.append(buffer, static_cast<size_t>(got));
    return true;
  }

  // Up to the line's end, which is taken, too.
  absl::StatusOr<std::string> ReadLine(size_t most) {
    size_t end = std::string::npos;
    while ((end = unread_.find("\r\n")) == std::string::npos) {
      if (unread_.size() > most) return Broken("does not speak HTTP as it should");
      ASSIGN_OR_RETURN(const bool more, Fill());
      if (!more) return Broken("ended the connection within its answer");
    }
    std::string line = unread_.substr(0, end);
    unread_.erase(0, end + 2);
    return line;
  }

  absl::Status ReadHead() {
    absl::StatusOr<std::string> first = ReadLine(kMaxHead);
    if (absl::IsCancelled(first.status())) return first.status();
    const bool http = first.ok() && (absl::StartsWith(*first, "HTTP/1.1 ") || absl::StartsWith(*first, "HTTP/1.0 "));
    if (!http || first->size() < 12 || !absl::SimpleAtoi(first->substr(9, 3), &status_)) {
      return Unavailable("%s does not speak HTTP: want the address of HTTP, by default port %d, and not the one of gRPC",
                         server_.Url(), kHttpPort);
    }
    for (size_t bytes = first->size(); true;) {
      ASSIGN_OR_RETURN(const std::string line, ReadLine(kMaxHead));
      if (line.empty()) return absl::OkStatus();
      if ((bytes += line.size()) > kMaxHead) return Broken("sends too many headers");
      const size_t colon = line.find(':');
      const std::string name = absl::AsciiStrToLower(line.substr(0, colon));
      const std::string value(
          absl::StripAsciiWhitespace(colon == std::string::npos ? "" : absl::string_view(line).substr(colon + 1)));
      if (name == "transfer-encoding") chunked_ = absl::EqualsIgnoreCase(value, "chunked");
      uint64_t length = 0;
      if (name == "content-length" && absl::SimpleAtoi(value, &length)) left_ = length;
    }
  }

  absl::StatusOr<std::string> ReadChunk() {
    if (chunk_left_ == 0) {
      ASSIGN_OR_RETURN(const std::string line, ReadLine(kMaxHeaderLine));
      const char* const end = line.data() + line.size();
      const auto [stop, error] = std::from_chars(line.data(), end, chunk_left_, 16);
      if (error != std::errc() || (stop != end && *stop != ';')) return Broken("does not speak HTTP as it should");
      if (chunk_left_ == 0) {
        chunked_ = false;
        left_ = 0;
        return std::string();
      }
    }
    if (unread_.empty()) {
      ASSIGN_OR_RETURN(const bool more, Fill());
      if (!more) return Broken("ended the connection within its answer");
    }
    std::string piece = unread_.substr(0, chunk_left_);
    unread_.erase(0, piece.size());
    chunk_left_ -= piece.size();
    if (chunk_left_ == 0) RETURN_IF_ERROR(ReadLine(kMaxHeaderLine).status());
    return piece;
  }

  const HttpServer server_;
  const absl::Duration patience_;
  UniqueFd fd_;
  std::atomic<int> open_{-1};  // fd_, for Cancel
  std::unique_ptr<SSL_CTX, FreeContext> context_;
  std::unique_ptr<SSL, FreeSsl> ssl_;
  std::atomic<bool> cancelled_{false};
  std::string unread_;
  int status_ = 0;
  bool chunked_ = false;
  uint64_t chunk_left_ = 0;
  std::optional<uint64_t> left_;  // of a body whose length was said
};

}  // namespace

std::string HttpServer::Url() const {
  const std::string shown = absl::StrContains(host, ':') ? "[" + host + "]" : host;
  return absl::StrCat(encrypted ? "https://" : "http://", shown, ":", port, path);
}

absl::StatusOr<HttpServer> ParseHttpServer(const std::string& text) {
  HttpServer server;
  std::string rest = text;
  int default_port = kHttpPort;
  if (const size_t scheme = text.find("://"); scheme != std::string::npos) {
    const std::string name = absl::AsciiStrToLower(text.substr(0, scheme));
    if (name != "http" && name != "https") return InvalidArgument("'%s' is no address of HTTP: want http://HOST:PORT", text);
    server.encrypted = name == "https";
    default_port = server.encrypted ? kDefaultTlsPort : kDefaultPort;
    rest = text.substr(scheme + 3);
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  server.path = std::string(absl::StripSuffix(absl::StripSuffix(rest.substr(slash), "/"), "/v1"));
  for (const char c : server.path) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c)) || c == '?' || c == '#') {
      return InvalidArgument("'%s' is no address of HTTP: want http://HOST:PORT", text);
    }
  }
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(rest.substr(0, slash), default_port));
  if (!address.unix_path.empty()) return InvalidArgument("'%s' is no address of HTTP: want http://HOST:PORT", text);
  server.host = WithoutBrackets(address.host);
  server.port = address.port;
  return server;
}

std::unique_ptr<HttpCall> HttpCall::To(const HttpServer& server, absl::Duration patience) {
  return std::make_unique<Call>(server, patience);
}

absl::StatusOr<std::string> ReadBody(HttpCall& call, size_t max_bytes) {
  std::string body;
  while (true) {
    ASSIGN_OR_RETURN(const std::string piece, call.Read());
    if (piece.empty()) return body;
    body += piece;
    if (body.size() > max_bytes) return Unavailable("the answer has more than %d bytes", max_bytes);
  }
}

}  // namespace ferry
