#pragma once

// What moves between the parts of a worker's KV cache before a step: blocks of the full layers, and the states of slots.
//
// The state of a slot is what a sequence needs beside its blocks: the last tokens' keys and values in the rings of sliding
// layers, and the states of gated delta nets. Host blocks and host states lie in the worker's host memory; the coordinator says
// what is in them, as it does for the device's blocks.

#include <cstdint>

namespace ferry {

struct CacheMove {
  enum class Kind : uint8_t {
    kSaveBlock,  // block -> host
    kLoadBlock,  // host -> block
    kCopyBlock,  // from_block -> block
    kSaveState,  // slot, behind `position` tokens -> host
    kLoadState,  // host, behind `position` tokens -> slot
  };
  Kind kind = Kind::kSaveBlock;
  int32_t block = 0;
  int32_t from_block = 0;
  int32_t host = 0;  // a host block, or a host state
  int32_t slot = 0;
  int64_t position = 0;  // above 0

  bool operator==(const CacheMove&) const = default;
};

// A coordinator makes no new ones while a step is under way and so many wait for the next.
inline constexpr int64_t kMaxWaitingMoves = int64_t{1} << 16;

// Of a state: in units of blocks, where the tokens begin that a copy of a ring holds. A row at position P sees the window - 1
// tokens before it; a copy made at `position` serves all rows from position - kStateSlack on.
inline constexpr int64_t kStateSlack = 64;
inline int64_t FirstStateBlock(int64_t position, int64_t window, int64_t block_tokens) {
  const int64_t first = position - kStateSlack - window + 1;
  return first > 0 ? first / block_tokens : 0;
}
// The most blocks that such a copy has.
inline int64_t StateBlocks(int64_t window, int64_t block_tokens) {
  return (kStateSlack + window - 1 + 2 * (block_tokens - 1)) / block_tokens;
}

}  // namespace ferry
