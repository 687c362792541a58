#pragma once

// How a piece of a stream is written by the thread that has it. Waking the network thread for every token would cost more than
// the write.
//
// The way is open while the head of the stream is out and nothing waits to be written; TLS has none. All other bytes of the
// connection are written by the network thread, which closes the way first. Any thread, unless said otherwise.

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "gateway/http/response_text.h"

namespace ferry {

// A piece as it goes over the wire in a stream.
std::string FramedPiece(std::string_view piece, Framing framing);

class ShortWay {
 public:
  // On the network thread. The request `serial` is handled from here on.
  void Begin(uint64_t serial);
  // On the network thread. Pieces of that request may go to `socket` until Close.
  void Open(int socket, Framing framing);
  // On the network thread, before it queues bytes or closes the socket. Returns what a piece has left, which is written next.
  std::string Close();

  enum class Went {
    kWhole,  // the socket has taken the piece
    kPart,   // the rest waits for Close: the network thread has to write it
    kNot,    // the network thread has to write the piece, and to call Arrived when it has it; the next ones follow it there
  };
  Went Send(uint64_t serial, std::string_view piece);
  // On the network thread. A piece of the request `serial` has come to it.
  void Arrived(uint64_t serial);

  // When bytes of the stream were written last, by either thread.
  void NoteSent();
  std::chrono::nanoseconds SinceSent() const;

 private:
  mutable std::mutex mutex_;
  bool open_ = false;
  int socket_ = -1;  // while open_
  Framing framing_ = Framing::kChunked;
  uint64_t serial_ = 0;
  int on_their_way_ = 0;  // pieces of that request that go to the network thread
  std::string left_;
  std::chrono::steady_clock::time_point last_sent_;
};

}  // namespace ferry
