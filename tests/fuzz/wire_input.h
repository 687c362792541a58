#pragma once

// How a fuzzer of wire messages reads its input. Byte 0 chooses the target; messages follow, each behind its length in two
// bytes, little-endian, and followed by two more that may move one of its numbers (bend.h); bytes missing at the end are 0.
// Corpus files are written the same way (make_corpus.cc), so libFuzzer starts from messages that pass the checks.

#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "tests/fuzz/bend.h"

namespace ferry {

// Not assert: the fuzzers are built with optimisation.
inline void Require(bool holds) {
  if (!holds) std::abort();
}

class WireInput {
 public:
  WireInput(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  // 0 at the end.
  uint8_t Byte() {
    if (rest_.empty()) return 0;
    const uint8_t byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return byte;
  }
  std::string_view Piece() {
    const size_t low = Byte(), high = Byte();
    const std::string_view piece = rest_.substr(0, low | high << 8);
    rest_.remove_prefix(piece.size());
    return piece;
  }
  // The next message. What does not parse becomes the empty message or its readable part, as it may be.
  template <typename Message>
  Message Next() {
    // The parser complains of every text that is not UTF-8 otherwise.
    [[maybe_unused]] static const auto silent = google::protobuf::SetLogHandler(nullptr);
    const std::string_view piece = Piece();
    Message message;
    message.ParseFromArray(piece.data(), static_cast<int>(piece.size()));
    const uint8_t which = Byte(), how = Byte();
    if (how != 0) Bend(&message, which, how);
    return message;
  }

 private:
  std::string_view rest_;
};

}  // namespace ferry
