#include "gateway/http/short_way.h"

#include <sys/socket.h>

#include <utility>

namespace ferry {

std::string FramedPiece(std::string_view piece, Framing framing) {
  return framing == Framing::kChunked ? ChunkText(piece) : std::string(piece);
}

void ShortWay::Begin(uint64_t serial) {
  const std::lock_guard lock(mutex_);
  serial_ = serial;
  on_their_way_ = 0;
}

void ShortWay::Open(int socket, Framing framing) {
  const std::lock_guard lock(mutex_);
  open_ = left_.empty();
  socket_ = socket;
  framing_ = framing;
}

std::string ShortWay::Close() {
  const std::lock_guard lock(mutex_);
  open_ = false;
  return std::exchange(left_, {});
}

ShortWay::Went ShortWay::Send(uint64_t serial, std::string_view piece) {
  const std::lock_guard lock(mutex_);
  if (!open_ || serial_ != serial || on_their_way_ > 0) {
    if (serial_ == serial) ++on_their_way_;
    return Went::kNot;
  }
  const std::string bytes = FramedPiece(piece, framing_);
  const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  last_sent_ = std::chrono::steady_clock::now();
  if (sent == static_cast<ssize_t>(bytes.size())) return Went::kWhole;
  left_ = bytes.substr(sent > 0 ? static_cast<size_t>(sent) : 0);
  open_ = false;
  return Went::kPart;
}

void ShortWay::Arrived(uint64_t serial) {
  const std::lock_guard lock(mutex_);
  if (serial_ == serial) --on_their_way_;
}

void ShortWay::NoteSent() {
  const std::lock_guard lock(mutex_);
  last_sent_ = std::chrono::steady_clock::now();
}

std::chrono::nanoseconds ShortWay::SinceSent() const {
  const std::lock_guard lock(mutex_);
  return std::chrono::steady_clock::now() - last_sent_;
}

}  // namespace ferry
