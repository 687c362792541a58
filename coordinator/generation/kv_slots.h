#pragma once

// Slots and blocks of the KV cache: which sequence is where, and which of its tokens a later request can reuse.
//
// A slot holds one sequence: a table of blocks for the full layers, taken from one pool, and a ring of its own in every
// sliding layer. A running request leases a slot with all the blocks that it can ever need, so it never waits for
// memory while it runs. When it ends, the slot keeps the sequence, and the next request that begins in the same way
// continues it. When a request needs more blocks, it takes those of idle slots, least recently used first.
//
// The ring limits reuse: it holds the last ring_tokens positions that were written, and a row at position P of a
// sliding layer sees window - 1 positions before it. So a sequence can go on from P only while
// the window - 1 positions before P are still in the ring.
//
// A state (of gated delta nets) limits it further: it is the state behind all tokens of the kept sequence, so a request either
// continues that whole sequence or begins anew.
//
// A pure state machine; one thread.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/status.h"

namespace ferry {

struct KvSlotsOptions {
  int64_t num_slots = 1;
  int64_t num_blocks = 1;
  int64_t block_tokens = 32;
  int64_t window = 0;       // 0: no layer slides
  int64_t ring_tokens = 0;  // of one slot in a sliding layer
  bool states = false;      // the model keeps states
};

class KvSlots {
 public:
  struct Lease {
    SlotId slot;
    int64_t cached_tokens = 0;    // leading tokens whose keys and values are in the cache
    std::vector<int32_t> blocks;  // for all reserved tokens
  };

  explicit KvSlots(const KvSlotsOptions& options);

  // A place for a sequence that begins with `prompt` (not empty) and grows to at most `reserve_tokens` (>= prompt). The
  // slot is the one with the longest usable common prefix, when that is at least a tenth of the prompt (less is not
  // worth giving up another sequence for); otherwise an empty one, otherwise the least recently used. The lease reuses
  // the slot's usable prefix, but never the whole prompt: its last token is computed again, for its logits. Without `reuse` it
  // reuses nothing. ResourceExhausted: no idle slot, or too few blocks until a running request ends; nothing changes
  // then.
  // A sequence of another `domain` is never reused: the speed of a hit would tell what somebody else asked.
  absl::StatusOr<Lease> Acquire(std::span<const int32_t> prompt, int64_t reserve_tokens, bool reuse,
                                const std::string& domain = "");
  // Blocks that hold so many tokens.
  int64_t BlocksFor(int64_t tokens) const { return (tokens + options_.block_tokens - 1) / options_.block_tokens; }
  // Whether such a request could ever be placed.
  bool CanEverHold(int64_t reserve_tokens) const { return BlocksFor(reserve_tokens) <= options_.num_blocks; }

  // The lease ends. `written`: the sequence's tokens whose keys and values were written, or will be by steps in flight.
  void Release(SlotId slot, std::span<const int32_t> written);
  // Forgets all sequences, running ones too.
  void Clear();

  int64_t num_blocks() const { return options_.num_blocks; }
  // Blocks that no running request has reserved.
  int64_t free_blocks() const { return options_.num_blocks - leased_blocks_; }

 private:
  struct Slot {
    bool leased = false;
    std::string domain;           // whose the sequence is
    std::vector<int32_t> tokens;  // idle: the sequence that it keeps
    std::vector<int32_t> blocks;
    int64_t ring_first = 0;  // positions from here to the sequence's end are in the ring
    uint64_t last_used = 0;
  };
  // How many leading tokens of `prompt` the idle `slot` can reuse.
  int64_t Usable(const Slot& slot, std::span<const int32_t> prompt) const;
  void Forget(Slot& slot);

  const KvSlotsOptions options_;
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;  // blocks of no slot; taken from the back
  int64_t leased_blocks_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace ferry
