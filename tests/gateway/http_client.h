#pragma once

// A client that writes any bytes and reads what comes: HTTP is the test's affair.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/unique_fd.h"

namespace ferry {

class HttpClient {
 public:
  explicit HttpClient(int port, int receive_buffer = 0) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0) setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }

  bool connected() const { return connected_; }
  void Close() { socket_ = UniqueFd(); }

  // False when the server has gone.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // What has been read so far and not yet taken, once `done` holds of it, the server has closed or the time is over.
  template <typename Done>
  const std::string& ReadUntil(const Done& done, absl::Duration timeout = absl::Seconds(30)) {
    const Deadline deadline = Deadline::In(timeout);
    while (!done(unread_) && !closed_ && !deadline.Passed()) {
      pollfd poll = {.fd = socket_.get(), .events = POLLIN};
      const int ready = ::poll(&poll, 1, static_cast<int>(absl::ToInt64Milliseconds(deadline.Remaining())) + 1);
      if (ready <= 0) continue;
      char bytes[16384];
      const ssize_t got = ::recv(socket_.get(), bytes, sizeof(bytes), 0);
      if (got <= 0) {
        closed_ = true;
      } else {
        unread_.append(bytes, static_cast<size_t>(got));
      }
    }
    return unread_;
  }
  const std::string& ReadUntilHas(std::string_view text) {
    return ReadUntil([&](const std::string& read) { return read.find(text) != std::string::npos; });
  }
  // Everything until the server closes.
  std::string ReadAll() {
    ReadUntil([](const std::string&) { return false; });
    return std::exchange(unread_, {});
  }
  bool closed() const { return closed_; }

  // The next answer that has a Content-Length, head and body.
  std::string ReadAnswer() {
    ReadUntil([](const std::string& read) { return AnswerBytes(read) > 0; });
    const size_t bytes = AnswerBytes(unread_);
    std::string answer = unread_.substr(0, bytes == 0 ? unread_.size() : bytes);
    unread_.erase(0, answer.size());
    return answer;
  }

 private:
  // Of the first answer, once it is whole; 0 before.
  static size_t AnswerBytes(const std::string& read) {
    const size_t end = read.find("\r\n\r\n");
    if (end == std::string::npos) return 0;
    const std::string name = "Content-Length: ";
    const size_t at = read.find(name);
    const size_t length = at == std::string::npos || at > end ? 0 : std::stoul(read.substr(at + name.size()));
    return read.size() >= end + 4 + length ? end + 4 + length : 0;
  }

  UniqueFd socket_;
  bool connected_ = false, closed_ = false;
  std::string unread_;
};

inline std::string Get(const std::string& path, const std::string& headers = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n";
}
inline std::string Post(const std::string& path, const std::string& body, const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
// "200" of "HTTP/1.1 200 OK".
inline int StatusOfAnswer(std::string_view answer) {
  return answer.size() > 12 && answer.starts_with("HTTP/1.1 ") ? std::stoi(std::string(answer.substr(9, 3))) : 0;
}
inline std::string BodyOf(const std::string& answer) {
  const size_t end = answer.find("\r\n\r\n");
  return end == std::string::npos ? "" : answer.substr(end + 4);
}

}  // namespace ferry
