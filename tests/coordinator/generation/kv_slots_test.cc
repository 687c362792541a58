#include "coordinator/generation/kv_slots.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Kind = CacheMove::Kind;

std::vector<int32_t> Tokens(int64_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// `common` tokens of Tokens(), then others.
std::vector<int32_t> Branch(int64_t common, int64_t count, int32_t others = 100000) {
  std::vector<int32_t> tokens = Tokens(count);
  for (int64_t i = common; i < count; ++i) tokens[i] += others;
  return tokens;
}

// Blocks of 4 tokens; no layer slides.
KvSlotsOptions Small(int64_t slots, int64_t blocks) { return {.num_slots = slots, .num_blocks = blocks, .block_tokens = 4}; }

struct Ran {
  int64_t cached = 0;
  std::vector<int32_t> blocks;
  std::vector<CacheMove> moves;
};

// Puts the rest of the sequence into steps; returns the last table and all moves.
Ran Compute(KvSlots& slots, const KvSlots::Lease& lease, std::span<const int32_t> tokens) {
  Ran ran{.cached = lease.cached_tokens, .blocks = {}, .moves = slots.TakeMoves()};
  for (int64_t first = lease.cached_tokens; first < std::ssize(tokens);) {
    const int64_t end = slots.StepEnd(lease.slot, first, std::ssize(tokens));
    ran.blocks = slots.Plan(lease.slot, tokens.first(end), first);
    const std::vector<CacheMove> moves = slots.TakeMoves();
    ran.moves.insert(ran.moves.end(), moves.begin(), moves.end());
    first = end;
  }
  return ran;
}

// A request whose sequence ends as `tokens`. Its prompt is the first `prompt` of them.
Ran Converse(KvSlots& slots, const std::vector<int32_t>& tokens, int64_t prompt, const std::string& domain = "") {
  const absl::StatusOr<KvSlots::Lease> lease = slots.Acquire(std::span(tokens).first(prompt), std::ssize(tokens), true, domain);
  EXPECT_OK(lease);
  Ran ran = Compute(slots, *lease, std::span(tokens).first(prompt));
  const Ran rest = Compute(slots, {.slot = lease->slot, .cached_tokens = prompt}, tokens);
  ran.moves.insert(ran.moves.end(), rest.moves.begin(), rest.moves.end());
  slots.Release(lease->slot, tokens);
  return ran;
}

Ran Converse(KvSlots& slots, const std::vector<int32_t>& tokens) { return Converse(slots, tokens, std::ssize(tokens)); }

TEST(KvSlots, ReservesTheBlocksOfAllTokensToCome) {
  KvSlots slots(Small(2, 10));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(Tokens(5), 13, true));
  EXPECT_EQ(lease.cached_tokens, 0);
  EXPECT_EQ(slots.free_blocks(), 6);
  EXPECT_THAT(slots.Plan(lease.slot, Tokens(5), 0), SizeIs(2)) << "and takes them when they are filled";
  EXPECT_EQ(slots.free_blocks(), 6);
}

TEST(KvSlots, NeverGivesABlockToTwoSequences) {
  KvSlots slots(Small(3, 9));
  std::set<int32_t> seen;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(Tokens(2, 100 * i), 12, true));
    const Ran ran = Compute(slots, lease, Tokens(12, 100 * i));
    seen.insert(ran.blocks.begin(), ran.blocks.end());
  }
  EXPECT_EQ(seen.size(), 9u);
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), 8);
}

TEST(KvSlots, RefusesWhenSlotsOrBlocksAreTaken) {
  KvSlots slots(Small(2, 4));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(Tokens(4), 12, true));
  EXPECT_THAT(slots.Acquire(Tokens(4, 50), 8, true), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(slots.free_blocks(), 1) << "a refusal takes nothing";
  ASSERT_OK(slots.Acquire(Tokens(4, 50), 4, true));
  EXPECT_THAT(slots.Acquire(Tokens(4, 90), 4, true), StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("slots")));
  Compute(slots, lease, Tokens(4));
  slots.Release(lease.slot, Tokens(4));
  EXPECT_EQ(slots.free_blocks(), 3);
  EXPECT_EQ(slots.cached_blocks(), 1);
  EXPECT_TRUE(slots.CanEverHold(16));
  EXPECT_FALSE(slots.CanEverHold(17));
}

TEST(KvSlots, GoesOnFromTheSequenceThatASlotKept) {
  KvSlots slots(Small(2, 8));
  const Ran first = Converse(slots, Tokens(9));
  const Ran next = Converse(slots, Tokens(12));
  EXPECT_EQ(next.cached, 9);
  EXPECT_TRUE(std::equal(first.blocks.begin(), first.blocks.end(), next.blocks.begin())) << "the kept blocks stay in place";
  EXPECT_THAT(next.moves, IsEmpty());
}

TEST(KvSlots, ComputesTheLastPromptTokenAgainForItsLogits) {
  KvSlots slots(Small(1, 8));
  Converse(slots, Tokens(6));
  EXPECT_EQ(Converse(slots, Tokens(6)).cached, 5);
  Converse(slots, Tokens(8));
  EXPECT_EQ(Converse(slots, Tokens(8)).cached, 7);
}

TEST(KvSlots, ReusesNothingWhenToldSo) {
  KvSlots slots(Small(1, 8));
  Converse(slots, Tokens(6));
  EXPECT_EQ(slots.Acquire(Tokens(6), 6, false)->cached_tokens, 0);
}

TEST(KvSlots, TakesTheLongestCommonPrefix) {
  KvSlots slots(Small(3, 30));
  Converse(slots, Branch(15, 20));
  Converse(slots, Branch(8, 20, 500));
  const Ran next = Converse(slots, Tokens(20));
  EXPECT_EQ(next.cached, 15);
  ASSERT_THAT(next.moves, SizeIs(1)) << "three tokens of a block are common: a copy of it is made";
  EXPECT_EQ(next.moves[0].kind, Kind::kCopyBlock);
  EXPECT_EQ(next.moves[0].block, next.blocks[3]);
}

TEST(KvSlots, RequestsThatRunShareTheirBeginning) {
  KvSlots slots(Small(2, 12));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease first, slots.Acquire(Branch(16, 18), 20, true));
  const Ran a = Compute(slots, first, Branch(16, 18));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease second, slots.Acquire(Branch(16, 18, 500), 20, true));
  EXPECT_EQ(second.cached_tokens, 16);
  const Ran b = Compute(slots, second, Branch(16, 18, 500));
  EXPECT_TRUE(std::equal(a.blocks.begin(), a.blocks.begin() + 4, b.blocks.begin()));
  EXPECT_NE(a.blocks[4], b.blocks[4]);
  EXPECT_EQ(slots.free_blocks(), 12 - 4 - 2);
}

TEST(KvSlots, RequestsOfOneStepShareFromTheNextOn) {
  KvSlots slots(Small(2, 12));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease first, slots.Acquire(Tokens(9), 12, true));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease second, slots.Acquire(Tokens(9), 12, true));
  EXPECT_EQ(second.cached_tokens, 0);
  const std::vector<int32_t> a = slots.Plan(first.slot, Tokens(9), 0), b = slots.Plan(second.slot, Tokens(9), 0);
  for (const int32_t block : a) EXPECT_EQ(std::ranges::count(b, block), 0) << "both write their own blocks in this step";
  slots.TakeMoves();
  EXPECT_EQ(slots.free_blocks(), 12 - 2 - 2) << "two are shared, and each has one to go on in";
  const std::vector<int32_t> later = slots.Plan(second.slot, Tokens(10), 9);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 2, later.begin()));
  EXPECT_EQ(later[2], b[2]);
}

TEST(KvSlots, KeepsConversationsWithOthersInBetween) {
  KvSlots slots(Small(1, 12));
  Converse(slots, Tokens(16, 100));
  Converse(slots, Tokens(16, 200));
  EXPECT_EQ(Converse(slots, Tokens(20, 100)).cached, 16);
}

TEST(KvSlots, TakesBlocksOfTheOldestSequenceWhenTheyAreNeeded) {
  KvSlots slots(Small(3, 6));
  Converse(slots, Tokens(8, 100));
  Converse(slots, Tokens(8, 200));
  EXPECT_EQ(slots.free_blocks(), 6);
  Converse(slots, Tokens(12, 300));  // 2 are of nobody, 1 is taken from the end of the first
  EXPECT_EQ(Converse(slots, Tokens(8, 200)).cached, 7) << "the newer sequence was left alone";
}

TEST(KvSlots, ForgetsEverythingOnClear) {
  KvSlots slots(Small(2, 8));
  Converse(slots, Tokens(8));
  ASSERT_OK(slots.Acquire(Tokens(4, 50), 4, true));
  slots.Clear();
  EXPECT_EQ(slots.free_blocks(), 8);
  EXPECT_EQ(slots.Acquire(Tokens(8), 32, true)->cached_tokens, 0);
}

TEST(KvSlots, ReusesNothingOfAnotherDomain) {
  KvSlots slots(Small(1, 16));
  EXPECT_EQ(Converse(slots, Tokens(8), 8, "alice").cached, 0);
  EXPECT_EQ(Converse(slots, Tokens(8), 8, "bob").cached, 0);
  EXPECT_EQ(Converse(slots, Tokens(8), 8, "bob").cached, 7);
}

// ----------------------------------------------------------------------------------------------------------------- host memory

TEST(KvSlots, BlocksGoToHostMemoryAndComeBack) {
  KvSlotsOptions options = Small(1, 4);
  options.num_host_blocks = 8;
  KvSlots slots(options);
  const Ran first = Converse(slots, Tokens(16, 100));
  const Ran other = Converse(slots, Tokens(16, 200));
  ASSERT_THAT(other.moves, SizeIs(4));
  for (const CacheMove& move : other.moves) EXPECT_EQ(move.kind, Kind::kSaveBlock);
  EXPECT_EQ(slots.free_host_blocks(), 4);
  const Ran again = Converse(slots, Tokens(16, 100));
  EXPECT_EQ(again.cached, 15);
  EXPECT_EQ(std::ranges::count(again.moves, Kind::kLoadBlock, &CacheMove::kind), 4);
  EXPECT_EQ(slots.stats().blocks_loaded, 4);
}

TEST(KvSlots, HostMemoryForgetsTheOldestFirst) {
  KvSlotsOptions options = Small(1, 5);
  options.num_host_blocks = 4;
  KvSlots slots(options);
  for (const int32_t first : {100, 200, 300}) Converse(slots, Tokens(16, first));
  EXPECT_EQ(Converse(slots, Tokens(17, 300)).cached, 16);
  EXPECT_EQ(Converse(slots, Tokens(16, 100)).cached, 0);
}

// ------------------------------------------------------------------------------------------------- the ring of sliding layers

// Window 8, ring 12: after n tokens the ring holds [n - 12, n).
KvSlotsOptions Sliding() { return {.num_slots = 1, .num_blocks = 50, .block_tokens = 4, .window = 8, .ring_tokens = 12}; }

TEST(KvSlots, AnotherIsWorthWaitingForUntilItsStateIsSaved) {
  KvSlots slots({.num_slots = 2,
                 .num_blocks = 100,
                 .block_tokens = 4,
                 .window = 8,
                 .ring_tokens = 12,
                 .num_host_blocks = 50,
                 .num_host_states = 4});
  const std::vector<int32_t> prompt = Tokens(100);
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(prompt, 110, true));
  const auto worth = [&](int64_t submitted, const std::vector<int32_t>& other) {
    return slots.WorthWaitingFor(lease.slot, prompt, submitted, other);
  };
  EXPECT_TRUE(worth(0, prompt));
  EXPECT_FALSE(worth(0, Branch(30, 100))) << "what it has in common is far before the state";
  Compute(slots, lease, prompt);
  EXPECT_TRUE(worth(100, prompt)) << "the next step saves the state";
  Compute(slots, {.slot = lease.slot, .cached_tokens = 100}, Tokens(101));
  EXPECT_FALSE(worth(100, prompt));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease same, slots.Acquire(prompt, 110, true));
  EXPECT_EQ(same.cached_tokens, 99);
}

TEST(KvSlots, GoesOnOnlyWhereTheRingStillHoldsTheWindow) {
  for (int64_t common = 1; common < 40; ++common) {
    KvSlots slots(Sliding());
    Converse(slots, Tokens(40));
    // A row at `common` sees positions common - 7 and on; the ring begins at 28.
    const bool valid = common - 7 >= 28;
    EXPECT_EQ(Converse(slots, Branch(common, 60)).cached, valid ? common : 0) << common;
  }
}

TEST(KvSlots, AShortSequenceIsInTheRingAsAWhole) {
  KvSlots slots(Sliding());
  Converse(slots, Tokens(12));
  EXPECT_EQ(Converse(slots, Branch(3, 20)).cached, 3);
}

TEST(KvSlots, RemembersHowFarBackTheRingReachesAcrossReuse) {
  KvSlots slots(Sliding());
  Converse(slots, Tokens(40));                            // the ring begins at 28
  ASSERT_EQ(Converse(slots, Branch(36, 38)).cached, 36);  // shorter than before: 26 and 27 did not come back
  EXPECT_EQ(Converse(slots, Branch(34, 38)).cached, 0) << "needs position 27, which the longer sequence has overwritten";
}

TEST(KvSlots, AFreshSequenceHasAFreshRing) {
  KvSlots slots(Sliding());
  Converse(slots, Tokens(40));
  ASSERT_EQ(Converse(slots, Tokens(10, 500)).cached, 0);
  EXPECT_EQ(Converse(slots, Tokens(11, 500)).cached, 10);
}

TEST(KvSlots, AStateGoesOnAtItsEndOnly) {
  KvSlotsOptions options = Small(1, 20);
  options.states = true;
  KvSlots slots(options);
  Converse(slots, Tokens(14), 10);
  EXPECT_EQ(Converse(slots, Tokens(20)).cached, 14) << "the whole sequence that was kept";
  EXPECT_EQ(Converse(slots, Tokens(20)).cached, 0) << "its last token would be computed again, on a state that has it";
  EXPECT_EQ(Converse(slots, Branch(12, 30)).cached, 0);
  EXPECT_EQ(Converse(slots, Branch(12, 31)).cached, 30);
}

// ------------------------------------------------------------------------------------------------------------------ saved states

KvSlotsOptions WithStates(int64_t slots) {
  KvSlotsOptions options = {.num_slots = slots, .num_blocks = 400, .block_tokens = 4, .states = true};
  options.num_host_blocks = 100;
  options.num_host_states = 10;
  return options;
}

TEST(KvSlots, AStateIsSavedWhenItsSlotIsNeeded) {
  KvSlots slots(WithStates(1));
  Converse(slots, Tokens(102, 1000), 90);
  const Ran other = Converse(slots, Tokens(50, 5000));
  ASSERT_THAT(other.moves, SizeIs(2));
  EXPECT_EQ(other.moves[0].kind, Kind::kSaveBlock) << "of the two tokens behind the last whole block";
  EXPECT_EQ(other.moves[1], (CacheMove{.kind = Kind::kSaveState, .host = other.moves[1].host, .position = 102}));
  const Ran next = Converse(slots, Tokens(120, 1000));
  EXPECT_EQ(next.cached, 102);
  EXPECT_EQ(std::ranges::count(next.moves, Kind::kLoadState, &CacheMove::kind), 1);
}

TEST(KvSlots, AStateIsSavedBehindAPrompt) {
  KvSlots slots(WithStates(1));
  Converse(slots, Branch(70, 90), 70);
  const Ran next = Converse(slots, Branch(70, 99, 500));  // another answer in the history
  EXPECT_EQ(next.cached, 70);
}

TEST(KvSlots, AStateIsSavedWhereAPromptLeavesAKnownPath) {
  KvSlots slots(WithStates(2));
  Converse(slots, Branch(201, 300));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(Branch(201, 300, 500), 300, true));
  EXPECT_EQ(lease.cached_tokens, 0);
  EXPECT_EQ(slots.StepEnd(lease.slot, 0, 300), 200) << "a step ends there";
  Compute(slots, lease, Branch(201, 300, 500));
  EXPECT_EQ(slots.Acquire(Branch(201, 300, 900), 300, true)->cached_tokens, 200);
}

TEST(KvSlots, ASavedWindowServesPlacesShortlyBeforeItsEnd) {
  KvSlotsOptions options = Sliding();
  options.num_blocks = 200;
  options.num_host_blocks = options.num_host_states = 10;
  options.ring_tokens = 100;
  for (int64_t common = 120; common <= 200; ++common) {
    KvSlots slots(options);
    Converse(slots, Branch(200, 300), 200);  // the answer fills the ring
    const bool valid = common - 7 >= FirstStateBlock(200, 8, 4) * 4;
    EXPECT_EQ(Converse(slots, Branch(common, 260, 500)).cached, valid ? common : 0) << common;
  }
}

TEST(KvSlots, ASnapshotEndsWithItsPath) {
  KvSlotsOptions options = WithStates(1);
  options.num_blocks = 30;
  options.num_host_blocks = 3;
  KvSlots slots(options);
  Converse(slots, Tokens(90, 1000));
  Converse(slots, Tokens(100, 5000));  // needs the blocks of the first
  EXPECT_EQ(Converse(slots, Tokens(95, 1000)).cached, 0);
}

// ------------------------------------------------------------------------------------------------------------ what blocks hold

// Executes moves and steps as a worker does, and knows the tokens of every place.
class Contents {
 public:
  explicit Contents(const KvSlotsOptions& options) : options_(options) {}

  void Move(const CacheMove& move) {
    const auto position = static_cast<size_t>(move.position);
    switch (move.kind) {
      case Kind::kSaveBlock:
        host_[move.host] = blocks_[move.block];
        break;
      case Kind::kLoadBlock:
        blocks_[move.block] = host_[move.host];
        break;
      case Kind::kCopyBlock:
        blocks_[move.block] = blocks_[move.from_block];
        break;
      case Kind::kSaveState:
        EXPECT_GE(states_[move.slot].size(), position);
        host_states_[move.host] = {states_[move.slot].begin(), states_[move.slot].begin() + move.position};
        first_of_host_[move.host] = std::max(
            first_[move.slot], FirstStateBlock(move.position, options_.window, options_.block_tokens) * options_.block_tokens);
        break;
      case Kind::kLoadState:
        states_[move.slot] = host_states_[move.host];
        first_[move.slot] = first_of_host_[move.host];
        EXPECT_EQ(states_[move.slot].size(), position);
    }
  }

  // Checks that the rows see their sequence, in its blocks and in its state.
  void Rows(int32_t slot, std::span<const int32_t> table, std::span<const int32_t> tokens, int64_t first) {
    std::vector<int32_t>& state = states_[slot];
    if (first == 0) state.clear(), first_[slot] = 0;
    for (int64_t i = 0; i < first; ++i) {
      const std::vector<int32_t>& block = blocks_[table[i / options_.block_tokens]];
      ASSERT_LT(i % options_.block_tokens, std::ssize(block)) << "position " << i << " of " << first;
      ASSERT_EQ(block[i % options_.block_tokens], tokens[i]) << "position " << i << " of " << first;
    }
    if (options_.states) {
      ASSERT_EQ(std::ssize(state), first);
    }
    if (options_.states || options_.window > 0) {
      const int64_t from = options_.states ? 0 : std::max<int64_t>(0, first - options_.window + 1);
      ASSERT_GE(from, options_.states ? 0 : first_[slot]);
      ASSERT_GE(std::ssize(state), first);
      ASSERT_TRUE(std::equal(tokens.begin() + from, tokens.begin() + first, state.begin() + from));
    }
    state.resize(first);
    state.insert(state.end(), tokens.begin() + first, tokens.end());
    first_[slot] = std::max(first_[slot], std::ssize(tokens) - options_.ring_tokens);
    for (int64_t i = first; i < std::ssize(tokens); ++i) {
      std::vector<int32_t>& block = blocks_[table[i / options_.block_tokens]];
      block.resize(i % options_.block_tokens);
      block.push_back(tokens[i]);
    }
  }

 private:
  const KvSlotsOptions options_;
  std::map<int32_t, std::vector<int32_t>> blocks_, host_, states_, host_states_;
  std::map<int32_t, int64_t> first_, first_of_host_;
};

struct Running {
  KvSlots::Lease lease;
  std::vector<int32_t> tokens;
  int64_t prompt = 0, done = 0;
};

// Random conversations that branch, several at once, some of them cancelled.
void ExpectRowsSeeTheirSequences(const KvSlotsOptions& options, uint32_t seed) {
  std::mt19937 random(seed);
  KvSlots slots(options);
  Contents contents(options);
  std::vector<std::vector<int32_t>> known = {Tokens(40)};
  std::vector<Running> running;
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
  int64_t hits = 0;
  for (int step = 0; step < 3000; ++step) {
    for (int i = 0; i < 2; ++i) {
      std::vector<int32_t> tokens = known[below(std::ssize(known))];
      tokens.resize(1 + below(std::ssize(tokens)));
      const int64_t more = 1 + below(30);
      for (int64_t j = 0; j < more && std::ssize(tokens) < 90; ++j) tokens.push_back(static_cast<int32_t>(below(3)));
      const int64_t prompt = 1 + below(std::ssize(tokens));
      const auto lease = slots.Acquire(std::span(tokens).first(prompt), std::ssize(tokens), below(8) > 0);
      if (!lease.ok()) continue;
      hits += lease->cached_tokens > 0;
      running.push_back({.lease = *lease, .tokens = tokens, .prompt = prompt, .done = lease->cached_tokens});
    }
    struct Part {
      Running* running;
      std::vector<int32_t> table;
      int64_t first;
    };
    std::vector<Part> parts;
    for (Running& each : running) {
      if (below(4) == 0) continue;
      const int64_t known_end = each.done < each.prompt ? each.prompt : each.done + 1;
      const int64_t end = slots.StepEnd(each.lease.slot, each.done, std::min(known_end, each.done + 1 + below(40)));
      parts.push_back({&each, slots.Plan(each.lease.slot, std::span(each.tokens).first(end), each.done), each.done});
      each.done = end;
    }
    if (!parts.empty()) {
      for (const CacheMove& move : slots.TakeMoves()) contents.Move(move);
      std::set<int32_t> written;
      for (const Part& part : parts) {
        for (int64_t i = part.first / options.block_tokens; i < std::ssize(part.table); ++i) {
          ASSERT_TRUE(written.insert(part.table[i]).second) << "two sequences write one block in a step";
        }
      }
      for (const Part& part : parts) {
        ASSERT_NO_FATAL_FAILURE(contents.Rows(part.running->lease.slot.value(), part.table,
                                              std::span(part.running->tokens).first(part.running->done), part.first));
      }
    }
    std::erase_if(running, [&](Running& each) {
      if (each.done < std::ssize(each.tokens) && below(20) > 0) return false;
      slots.Release(each.lease.slot, std::span(each.tokens).first(each.done));
      known.push_back(each.tokens);
      if (known.size() > 30) known.erase(known.begin() + below(30));
      return true;
    });
    ASSERT_GE(slots.free_blocks(), 0);
    ASSERT_LE(slots.free_blocks(), options.num_blocks);
  }
  for (const Running& each : running) slots.Release(each.lease.slot, std::span(each.tokens).first(each.done));
  EXPECT_EQ(slots.free_blocks(), options.num_blocks) << "every block is free or kept at the end";
  EXPECT_GT(hits, 10);
}

TEST(KvSlots, RowsSeeTheirSequencesWhateverIsReused) {
  uint32_t seed = 0;
  for (const int64_t window : {0, 8}) {
    for (const bool states : {false, true}) {
      for (const auto& [blocks, host_blocks, host_states] :
           std::vector<std::tuple<int64_t, int64_t, int64_t>>{{200, 0, 0}, {60, 40, 5}, {45, 300, 60}, {30, 10, 1}, {26, 1, 2}}) {
        SCOPED_TRACE(testing::Message() << "window " << window << ", states " << states << ", " << blocks << " blocks, "
                                        << host_blocks << " and " << host_states << " states of the host");
        ASSERT_NO_FATAL_FAILURE(ExpectRowsSeeTheirSequences({.num_slots = 3,
                                                             .num_blocks = blocks,
                                                             .block_tokens = 4,
                                                             .window = window,
                                                             .ring_tokens = window == 0 ? 0 : 20,
                                                             .states = states,
                                                             .num_host_blocks = host_blocks,
                                                             .num_host_states = host_states},
                                                            ++seed));
      }
    }
  }
}

}  // namespace
}  // namespace ferry
