#pragma once

// What a hostile client does to the API's port: HTTP/2 written byte by byte, and messages that no stub would send.

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "common/unique_fd.h"

namespace ferry {

// A TCP connection that reads only where a member says so.
class HostileConnection {
 public:
  // `address` is IPv4:PORT. `source` is the address to come from: Linux lets everybody use all of 127.0.0.0/8.
  explicit HostileConnection(const std::string& address, const std::string& source = "127.0.0.1");
  bool connected() const { return socket_.valid(); }
  // False: the other end has closed the connection, or has taken nothing for 5 seconds.
  bool Send(std::string_view bytes);
  // Opens `calls` of `method`, each with a message of `message_bytes`, and sends of these what the other end's windows allow, but
  // never the last byte. Returns how many bytes it sent once the other end has taken nothing more for `patience`.
  int64_t SendUnfinished(int calls, const std::string& method, uint32_t message_bytes, absl::Duration patience);
  // Whether the other end closes it within `timeout`. What comes is read and dropped.
  bool IsClosedWithin(absl::Duration timeout);
  void Close() { socket_ = UniqueFd(); }
  void Reset();  // with a TCP reset instead of an orderly end

 private:
  UniqueFd socket_;
};

enum class FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kResetStream = 3,
  kSettings = 4,
  kPing = 6,
  kWindowUpdate = 8,
  kContinuation = 9
};
inline constexpr uint8_t kEndStream = 1, kEndHeaders = 4, kAcknowledge = 1;

std::string Http2Frame(FrameType type, uint8_t flags, uint32_t stream, std::string_view payload);
// What a client sends first. `window`: bytes that each stream may send to it.
std::string Http2Opening(uint32_t window = 65535);
// The headers that open a call of `method`, "/package.Service/Method".
std::string CallHeaders(uint32_t stream, const std::string& method);
// The one message of a call, at most 16 KiB.
std::string CallMessage(uint32_t stream, std::string_view message);

// A channel of its own connection.
std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address);
// Sends `message` as it is, with gzip where `compressed`, and reads all answers.
grpc::Status CallWithBytes(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, std::string_view message,
                           absl::Duration timeout, bool compressed = false);

}  // namespace ferry
