#include "tests/cluster/hostile_client.h"

#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>
#include <vector>

#include "common/deadline.h"

namespace ferry {
namespace {

constexpr int kSendSeconds = 5;
constexpr uint16_t kInitialWindowSize = 4;  // of SETTINGS

std::string BigEndian(uint64_t value, int bytes) {
  std::string result;
  for (int i = bytes - 1; i >= 0; --i) result += static_cast<char>(value >> (8 * i));
  return result;
}

// A literal header field of HPACK that enters no table.
std::string Header(std::string_view name, std::string_view value) {
  std::string result(1, '\0');
  for (const std::string_view text : {name, value}) {
    result += static_cast<char>(text.size());  // below 127 here
    result += text;
  }
  return result;
}

}  // namespace

HostileConnection::HostileConnection(const std::string& address, const std::string& source)
    : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const size_t colon = address.rfind(':');
  const timeval patience = {.tv_sec = kSendSeconds, .tv_usec = 0};
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  sockaddr_in from = {}, to = {};
  from.sin_family = to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  const bool known = ::inet_pton(AF_INET, source.c_str(), &from.sin_addr) == 1 &&
                     ::inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) == 1;
  if (!known || ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&from), sizeof(from)) != 0 ||
      ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
    Close();
  }
}

bool HostileConnection::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool HostileConnection::IsClosedWithin(absl::Duration timeout) {
  const Deadline end = Deadline::In(timeout);
  std::array<char, 4096> buffer;
  do {
    pollfd poll = {socket_.get(), POLLIN, 0};
    if (::poll(&poll, 1, 50) > 0 && ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT) <= 0) return true;
  } while (!end.Passed());
  return false;
}

namespace {

// What the other end lets a client send: HTTP/2's flow control, as its frames say.
class Windows {
 public:
  explicit Windows(int calls) : streams_(calls, 65535) {}
  int64_t OfCall(int call) const { return std::min(connection_, streams_[call]); }
  void Use(int call, int64_t bytes) {
    connection_ -= bytes;
    streams_[call] -= bytes;
  }
  // Takes the whole frames off `bytes`, and returns what a client has to answer.
  std::string Read(std::string* bytes) {
    std::string answer;
    size_t begin = 0;
    while (bytes->size() - begin >= 9) {
      const auto number = [&](size_t at, int size) {
        uint64_t value = 0;
        for (int i = 0; i < size; ++i) value = value << 8 | static_cast<unsigned char>((*bytes)[begin + at + i]);
        return value;
      };
      const size_t size = number(0, 3);
      if (bytes->size() - begin < 9 + size) break;
      const auto type = static_cast<FrameType>(number(3, 1));
      const bool acknowledges = (number(4, 1) & kAcknowledge) != 0;
      const uint64_t stream = number(5, 4);
      if (type == FrameType::kWindowUpdate) {
        if (stream == 0) {
          connection_ += static_cast<int64_t>(number(9, 4));
        } else if ((stream - 1) / 2 < streams_.size()) {
          streams_[(stream - 1) / 2] += static_cast<int64_t>(number(9, 4));
        }
      } else if (type == FrameType::kSettings && !acknowledges) {
        for (size_t at = 9; at + 6 <= 9 + size; at += 6) {
          if (number(at, 2) != kInitialWindowSize) continue;
          const auto initial = static_cast<int64_t>(number(at + 2, 4));
          for (int64_t& window : streams_) window += initial - initial_;
          initial_ = initial;
        }
        answer += Http2Frame(FrameType::kSettings, kAcknowledge, 0, "");
      } else if (type == FrameType::kPing && !acknowledges) {
        answer += Http2Frame(FrameType::kPing, kAcknowledge, 0, bytes->substr(begin + 9, size));
      }
      begin += 9 + size;
    }
    bytes->erase(0, begin);
    return answer;
  }

 private:
  int64_t connection_ = 65535, initial_ = 65535;
  std::vector<int64_t> streams_;  // call i is stream 2 i + 1
};

}  // namespace

int64_t HostileConnection::SendUnfinished(int calls, const std::string& method, uint32_t message_bytes, absl::Duration patience) {
  constexpr int64_t kFrameBytes = 16384, kPrefixBytes = 5;
  const auto stream = [](int call) { return static_cast<uint32_t>(2 * call + 1); };
  Windows windows(calls);
  std::vector<int64_t> left(calls, message_bytes - 1);
  std::string opening = Http2Opening();
  for (int call = 0; call < calls; ++call) {
    opening += CallHeaders(stream(call), method);
    opening += Http2Frame(FrameType::kData, 0, stream(call), std::string(1, '\0') + BigEndian(message_bytes, 4));
    windows.Use(call, kPrefixBytes);
  }
  int64_t sent = 0;
  std::string received;
  std::array<char, 65536> buffer;
  Deadline end = Deadline::In(patience);
  for (bool open = Send(opening); open && !end.Passed();) {
    pollfd poll = {socket_.get(), POLLIN, 0};
    if (::poll(&poll, 1, 20) > 0) {
      const ssize_t size = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (size <= 0) break;
      received.append(buffer.data(), static_cast<size_t>(size));
      open = Send(windows.Read(&received));
    }
    for (int call = 0; call < calls && open; ++call) {
      const int64_t bytes = std::min({left[call], windows.OfCall(call), kFrameBytes});
      if (bytes <= 0) continue;
      open = Send(Http2Frame(FrameType::kData, 0, stream(call), std::string(static_cast<size_t>(bytes), 'x')));
      windows.Use(call, bytes);
      left[call] -= bytes;
      sent += bytes;
      end = Deadline::In(patience);
    }
  }
  return sent;
}

void HostileConnection::Reset() {
  const linger at_once = {.l_onoff = 1, .l_linger = 0};
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  Close();
}

std::string Http2Frame(FrameType type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string frame = BigEndian(payload.size(), 3);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  return frame + BigEndian(stream, 4) + std::string(payload);
}

std::string Http2Opening(uint32_t window) {
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
         Http2Frame(FrameType::kSettings, 0, 0, BigEndian(kInitialWindowSize, 2) + BigEndian(window, 4));
}

std::string CallHeaders(uint32_t stream, const std::string& method) {
  return Http2Frame(FrameType::kHeaders, kEndHeaders, stream,
                    Header(":method", "POST") + Header(":scheme", "http") + Header(":path", method) +
                        Header(":authority", "ferry") + Header("te", "trailers") + Header("content-type", "application/grpc"));
}

std::string CallMessage(uint32_t stream, std::string_view message) {
  return Http2Frame(FrameType::kData, kEndStream, stream,
                    std::string(1, '\0') + BigEndian(message.size(), 4) + std::string(message));
}

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

grpc::Status CallWithBytes(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, std::string_view message,
                           absl::Duration timeout, bool compressed) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  if (compressed) context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, method, &queue);
  const auto done = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  if (done()) {
    const grpc::Slice slice(message.data(), message.size());
    call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
    grpc::ByteBuffer answer;
    for (bool more = done(); more; more = done()) call->Read(&answer, nullptr);
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  return status;
}

}  // namespace ferry
