#pragma once

// Slots and blocks of the KV cache: which sequence is where, and which tokens a later request can reuse.
//
// A running request leases a slot and reserves all the blocks that it can ever need, so it never waits for memory while it runs;
// it takes a block when a step fills it. Blocks whose tokens all are in steps go into a tree (prefix_tree.h): requests that begin
// in the same way share them, while they run and afterwards. A block that is common in part is copied.
//
// In some models a sequence has a state beside its blocks (common/cache_move.h): it can go on only from a position whose state is
// kept. The slot of a request that has ended keeps its last state until another request needs the slot, and then the state is
// saved to host memory. States are also saved behind a prompt, because the next turn of a conversation may drop what was
// generated, and where a prompt left a known path, because others will leave it there. A step ends at such positions (StepEnd). A
// state with its path and the tokens behind the path's last whole block is a snapshot here; models without states have snapshots
// for those tokens alone.
//   window  A row at position P of a sliding layer sees the window - 1 positions before it, and a snapshot has some more. So a
//           sequence can go on anywhere near the snapshot's end.
//   states  A gated delta net goes on exactly where its state ends.
//
// Workers compute steps in order, so blocks may be given away while a step with them is in flight: later steps overwrite what
// that step writes before they read it. A block that becomes free while a step is made is given away in the next one.
//
// A pure state machine; one thread.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/cache_move.h"
#include "common/ids.h"
#include "common/status.h"
#include "coordinator/generation/prefix_tree.h"

namespace ferry {

struct KvSlotsOptions {
  int64_t num_slots = 1;
  int64_t num_blocks = 1;
  int64_t block_tokens = 32;
  int64_t window = 0;           // 0: no layer slides
  int64_t ring_tokens = 0;      // of one slot in a sliding layer
  bool states = false;          // the model has gated delta nets
  int64_t num_host_blocks = 0;  // in host memory
  int64_t num_host_states = 0;  // likewise: the most snapshots that are saved
};

struct KvSlotsStats {
  int64_t prompt_tokens = 0;  // of leases
  int64_t cached_tokens = 0;  // of them: those that were reused
  int64_t blocks_saved = 0;   // to host memory
  int64_t blocks_loaded = 0;  // back
  int64_t states_saved = 0;   // likewise
  int64_t states_loaded = 0;
};

class KvSlots {
 public:
  struct Lease {
    SlotId slot;
    int64_t cached_tokens = 0;  // leading tokens that need no rows
  };

  explicit KvSlots(const KvSlotsOptions& options);

  // A place for a sequence that begins with `prompt` (not empty) and grows to at most `reserve_tokens` (>= prompt). The lease
  // reuses the longest usable prefix, but never the whole prompt: its last token is computed again, for its logits. Without
  // `reuse` it reuses nothing. ResourceExhausted: no idle slot, or too few blocks until a running request ends; nothing changes
  // then. A sequence of another `domain` is never reused: the speed of a hit would tell what somebody else asked.
  //
  // Blocks come back from host memory whenever they are there: a token's keys and values are some tens of kilobytes, which any
  // link carries in microseconds, and a step of a prompt of any length ships experts of a thousand times that size.
  absl::StatusOr<Lease> Acquire(std::span<const int32_t> prompt, int64_t reserve_tokens, bool reuse,
                                const std::string& domain = "");
  // Whether a sequence that begins with `prompt` should be placed later, since it can then reuse much that the running one in
  // `slot`, of its domain, computes until then: of that one's `known` tokens, the first `submitted` are in steps.
  bool WorthWaitingFor(SlotId slot, std::span<const int32_t> known, int64_t submitted, std::span<const int32_t> prompt) const;
  // Blocks that hold so many tokens.
  int64_t BlocksFor(int64_t tokens) const { return (tokens + options_.block_tokens - 1) / options_.block_tokens; }
  // How many of free_blocks() such a request takes: those that it shares with running ones are not among them.
  int64_t BlocksNeeded(std::span<const int32_t> prompt, int64_t reserve_tokens, bool reuse, const std::string& domain) const;
  // Blocks that will be free when the lease ends, if no other ends before.
  int64_t BlocksOf(SlotId slot) const;
  // Whether such a request could ever be placed.
  bool CanEverHold(int64_t reserve_tokens) const { return BlocksFor(reserve_tokens) <= options_.num_blocks; }

  // Where a step with rows of the sequence from `first` on has to end, at most `end`.
  int64_t StepEnd(SlotId slot, int64_t first, int64_t end) const;
  // The block table for a step with the rows from `first` to the end of `tokens`, which are all tokens up to there. A sequence is
  // in a step once; `first` is where its last step ended, or its cached tokens.
  std::vector<int32_t> Plan(SlotId slot, std::span<const int32_t> tokens, int64_t first);
  // Call it when the step has all its sequences. Returns the moves to make before its rows, in this order.
  std::vector<CacheMove> TakeMoves();

  int64_t num_moves() const { return std::ssize(tree_.moves()); }  // that wait for TakeMoves

  // The lease ends. `written`: the sequence's tokens that were in steps, or cached.
  void Release(SlotId slot, std::span<const int32_t> written);
  // Forgets all sequences, running ones too.
  void Clear();

  int64_t num_blocks() const { return options_.num_blocks; }
  // Blocks that no running request has reserved.
  int64_t free_blocks() const { return tree_.num_free() + static_cast<int64_t>(freed_.size()) + cached_blocks() - reserved_; }
  // Blocks that keep tokens for later requests.
  int64_t cached_blocks() const { return tree_.num_kept() + num_tails_; }
  int64_t num_host_blocks() const { return options_.num_host_blocks; }
  int64_t free_host_blocks() const { return tree_.num_free_host(); }
  const KvSlotsStats& stats() const { return stats_; }

 private:
  using Node = PrefixTree::Node;
  static constexpr int32_t kNone = -1;

  // A place where a sequence can go on: behind the path to `node` and the tokens of `tail`.
  struct Snapshot {
    Node* node = nullptr;  // the last whole block, or a root
    std::vector<int32_t> tail;
    int64_t position = 0;  // tokens of both
    int64_t first = 0;     // positions from here on are in the rings
    uint64_t last_used = 0;
    int32_t slot = kNone;        // that has the state; kNone: it is saved
    int32_t tail_block = kNone;  // in the device, of a snapshot in a slot
    int32_t host_tail = kNone, host_state = kNone;
  };
  struct Slot {
    bool leased = false;
    Node* root = nullptr;
    std::vector<Node*> nodes;     // of the leading blocks, held
    std::vector<int32_t> blocks;  // taken so far; those behind the nodes are its own
    int64_t reserved = 0;         // blocks to be taken yet
    int64_t ring_first = 0;
    std::vector<int64_t> save_at;  // positions whose states are saved, increasing
    uint64_t last_used = 0;
    uint64_t snapshot = 0;  // idle: the number of the snapshot in this slot; 0: none
  };
  // A usable beginning of a prompt.
  struct Match {
    int64_t tokens = 0;
    std::vector<Node*> nodes;  // of its whole blocks
    // Where the tokens behind those are, if there are any.
    Node* partial = nullptr;
    bool in_tail = false;   // of the snapshot
    uint64_t snapshot = 0;  // whose state or tail is used; 0: none
    int64_t known = 0;      // tokens of the prompt's leading whole blocks that the tree has, usable or not
  };

  bool has_state() const { return options_.window > 0 || options_.states; }

  // The nodes of the prompt's leading whole blocks, as far as the tree has them.
  std::vector<Node*> PathOf(const Node& root, std::span<const int32_t> prompt) const;
  Match FindMatch(std::span<const int32_t> prompt, const std::string& domain) const;
  // Makes `match` one that goes on from the snapshot, if that is possible and better.
  void ConsiderSnapshot(uint64_t number, const Snapshot& snapshot, std::span<const int32_t> prompt, const Node* root,
                        std::span<Node* const> path, Match* match) const;
  // The idle slot for the request, with the state and the tail's block of `match` if those are there, and without a snapshot.
  Slot& ChooseSlot(const Match& match);
  void GoOnInSlot(uint64_t number, bool keeps_tail, Slot* slot);
  // The own block behind the nodes of `match`, which gets the tokens of its partial block.
  void TakePartial(const Match& match, Slot* slot);
  // Where states of a new sequence are to be saved.
  std::vector<int64_t> PlacesToSave(const Match& match, int64_t prompt_tokens) const;
  // Moves full blocks of the sequence into the tree.
  void Share(std::span<const int32_t> tokens, Slot* slot);
  int32_t TakeBlock();

  // Positions from here on are in the slot's ring, when the sequence has `position` tokens.
  int64_t FirstInRing(const Slot& slot, int64_t position) const;
  Snapshot SnapshotOf(const Slot& slot, std::span<const int32_t> tokens) const;
  uint64_t AddSnapshot(Snapshot snapshot);
  // A snapshot of the same tokens, in a slot or saved; 0: there is none.
  uint64_t FindSame(const Snapshot& like, bool saved) const;
  // Saves the state of a slot and its tail's block as `snapshot`, whose node stays meanwhile. Drops the least recently used
  // snapshot for it, but not the matched one. False: there is no room.
  bool Save(const Slot& slot, int32_t tail_block, Snapshot* snapshot);
  // Saves what the running sequence is now, behind all of `tokens`.
  void SaveRunning(std::span<const int32_t> tokens, const Slot& slot);
  // Makes a slot's snapshot a saved one, or drops it. The slot has none then.
  void VacateSlot(Slot* slot);
  void Drop(uint64_t number);
  void DropOrphans();
  int32_t IdOf(const Slot& slot) const { return static_cast<int32_t>(&slot - slots_.data()); }

  const KvSlotsOptions options_;
  PrefixTree tree_;
  std::vector<Slot> slots_;
  std::map<uint64_t, Snapshot> snapshots_;  // by number
  std::vector<int32_t> free_states_;        // host states of no snapshot
  std::vector<int32_t> freed_;              // while a step is made; the tree gets them with TakeMoves
  int64_t reserved_ = 0;                    // blocks that running requests will take
  int64_t num_saved_ = 0;                   // snapshots in host memory
  int64_t num_tails_ = 0;                   // device blocks of snapshots
  uint64_t matched_ = 0;                    // the snapshot that a lease is made from
  uint64_t uses_ = 0, last_number_ = 0;
  KvSlotsStats stats_;
};

}  // namespace ferry
