#include "coordinator/generation/kv_slots.h"

#include <numeric>
#include <set>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

std::vector<int32_t> Tokens(int64_t count, int32_t first = 0) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// `common` tokens of Tokens(), then others.
std::vector<int32_t> Branch(int64_t common, int64_t count) {
  std::vector<int32_t> tokens = Tokens(count);
  for (int64_t i = common; i < count; ++i) tokens[i] += 100000;
  return tokens;
}

// Blocks of 4 tokens; no layer slides.
KvSlotsOptions Small(int64_t slots, int64_t blocks) { return {.num_slots = slots, .num_blocks = blocks, .block_tokens = 4}; }

TEST(KvSlots, ReservesTheBlocksOfAllTokensToCome) {
  KvSlots slots(Small(2, 10));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(Tokens(5), 13, true));
  EXPECT_EQ(lease.blocks.size(), 4u);
  EXPECT_EQ(lease.cached_tokens, 0);
  EXPECT_EQ(slots.free_blocks(), 6);
}

TEST(KvSlots, NeverGivesABlockTwice) {
  KvSlots slots(Small(3, 9));
  std::set<int32_t> seen;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK_AND_ASSIGN(const KvSlots::Lease lease, slots.Acquire(Tokens(2, 10 * i), 12, true));
    seen.insert(lease.blocks.begin(), lease.blocks.end());
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
  slots.Release(lease.slot, Tokens(4));
  EXPECT_EQ(slots.free_blocks(), 3);
  EXPECT_TRUE(slots.CanEverHold(16));
  EXPECT_FALSE(slots.CanEverHold(17));
}

TEST(KvSlots, GoesOnFromTheSequenceThatASlotKept) {
  KvSlots slots(Small(2, 8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease first, slots.Acquire(Tokens(6), 10, true));
  slots.Release(first.slot, Tokens(9));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease next, slots.Acquire(Tokens(12), 16, true));
  EXPECT_EQ(next.slot, first.slot);
  EXPECT_EQ(next.cached_tokens, 9);
  EXPECT_TRUE(std::equal(next.blocks.begin(), next.blocks.begin() + 3, first.blocks.begin())) << "the kept blocks stay in place";
}

TEST(KvSlots, ComputesTheLastPromptTokenAgainForItsLogits) {
  KvSlots slots(Small(1, 8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease first, slots.Acquire(Tokens(6), 6, true));
  slots.Release(first.slot, Tokens(6));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease again, slots.Acquire(Tokens(6), 6, true));
  EXPECT_EQ(again.cached_tokens, 5);
}

TEST(KvSlots, ReusesNothingWhenToldSo) {
  KvSlots slots(Small(1, 8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease first, slots.Acquire(Tokens(6), 6, true));
  slots.Release(first.slot, Tokens(6));
  EXPECT_EQ(slots.Acquire(Tokens(6), 6, false)->cached_tokens, 0);
}

TEST(KvSlots, TakesTheLongestCommonPrefix) {
  KvSlots slots(Small(3, 30));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease a, slots.Acquire(Branch(8, 20), 20, true));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease b, slots.Acquire(Branch(15, 20), 20, true));
  slots.Release(b.slot, Branch(15, 20));
  slots.Release(a.slot, Branch(8, 20));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease next, slots.Acquire(Tokens(20), 20, true));
  EXPECT_EQ(next.slot, b.slot);
  EXPECT_EQ(next.cached_tokens, 15);
}

TEST(KvSlots, GivesUpNoSequenceForAFewCommonTokensWhileASlotIsEmpty) {
  KvSlots slots(Small(2, 40));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease a, slots.Acquire(Tokens(40), 40, true));
  slots.Release(a.slot, Tokens(40));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease b, slots.Acquire(Branch(3, 40), 40, true));
  EXPECT_NE(b.slot, a.slot);
  EXPECT_EQ(b.cached_tokens, 0);
}

TEST(KvSlots, TakesTheLeastRecentlyUsedSlotOtherwise) {
  KvSlots slots(Small(2, 8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease a, slots.Acquire(Tokens(4, 100), 4, true));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease b, slots.Acquire(Tokens(4, 200), 4, true));
  slots.Release(b.slot, Tokens(4, 200));
  slots.Release(a.slot, Tokens(4, 100));
  EXPECT_EQ(slots.Acquire(Tokens(4, 300), 4, true)->slot, b.slot);
}

TEST(KvSlots, TakesBlocksFromIdleSequencesWhenTheyAreNeeded) {
  KvSlots slots(Small(3, 6));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease a, slots.Acquire(Tokens(8, 100), 8, true));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease b, slots.Acquire(Tokens(8, 200), 8, true));
  slots.Release(a.slot, Tokens(8, 100));
  slots.Release(b.slot, Tokens(8, 200));
  EXPECT_EQ(slots.free_blocks(), 6);
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease c, slots.Acquire(Tokens(4, 300), 16, true));  // 2 are of nobody, 2 come from a
  slots.Release(c.slot, Tokens(16, 300));
  EXPECT_EQ(slots.Acquire(Tokens(8, 200), 8, true)->cached_tokens, 7) << "the newer idle sequence was left alone";
}

TEST(KvSlots, ForgetsEverythingOnClear) {
  KvSlots slots(Small(2, 8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease a, slots.Acquire(Tokens(8), 8, true));
  slots.Release(a.slot, Tokens(8));
  ASSERT_OK(slots.Acquire(Tokens(4, 50), 4, true));
  slots.Clear();
  EXPECT_EQ(slots.free_blocks(), 8);
  EXPECT_EQ(slots.Acquire(Tokens(8), 32, true)->cached_tokens, 0);
}

// ------------------------------------------------------------------------------------------------- the ring of sliding
// layers

// Window 8, ring 12: after n tokens the ring holds [n - 12, n).
KvSlotsOptions Sliding() { return {.num_slots = 1, .num_blocks = 50, .block_tokens = 4, .window = 8, .ring_tokens = 12}; }

int64_t CachedAfter(KvSlots& slots, const std::vector<int32_t>& prompt) {
  const absl::StatusOr<KvSlots::Lease> lease = slots.Acquire(prompt, static_cast<int64_t>(prompt.size()), true);
  EXPECT_OK(lease);
  slots.Release(lease->slot, prompt);
  return lease->cached_tokens;
}

TEST(KvSlots, GoesOnOnlyWhereTheRingStillHoldsTheWindow) {
  for (int64_t common = 1; common < 40; ++common) {
    KvSlots slots(Sliding());
    CachedAfter(slots, Tokens(40));
    // A row at `common` sees positions common - 7 and on; the ring begins at 28.
    const bool valid = common - 7 >= 28;
    EXPECT_EQ(CachedAfter(slots, Branch(common, 60)), valid ? common : 0) << common;
  }
}

TEST(KvSlots, AShortSequenceIsInTheRingAsAWhole) {
  KvSlots slots(Sliding());
  CachedAfter(slots, Tokens(12));
  EXPECT_EQ(CachedAfter(slots, Branch(3, 20)), 3);
}

TEST(KvSlots, RemembersHowFarBackTheRingReachesAcrossReuse) {
  KvSlots slots(Sliding());
  CachedAfter(slots, Tokens(40));                     // the ring begins at 28
  ASSERT_EQ(CachedAfter(slots, Branch(36, 38)), 36);  // shorter than before: 26 and 27 did not come back
  EXPECT_EQ(CachedAfter(slots, Branch(34, 38)), 0) << "needs position 27, which the longer sequence has overwritten";
}

TEST(KvSlots, AFreshSequenceHasAFreshRing) {
  KvSlots slots(Sliding());
  CachedAfter(slots, Tokens(40));
  ASSERT_EQ(CachedAfter(slots, Tokens(10, 500)), 0);
  EXPECT_EQ(CachedAfter(slots, Tokens(11, 500)), 10);
}

TEST(KvSlots, AStateGoesOnAtItsEndOnly) {
  KvSlotsOptions options = Small(1, 20);
  options.states = true;
  KvSlots slots(options);
  const auto cached = [&](const std::vector<int32_t>& prompt, const std::vector<int32_t>& kept) {
    KvSlots::Lease lease = slots.Acquire(prompt, 40, true).value();
    slots.Release(lease.slot, kept);
    return lease.cached_tokens;
  };
  EXPECT_EQ(cached(Tokens(10), Tokens(14)), 0);
  EXPECT_EQ(cached(Tokens(20), Tokens(20)), 14) << "the whole sequence that was kept";
  EXPECT_EQ(cached(Tokens(20), Tokens(20)), 0) << "its last token would be computed again, on a state that has it";
  EXPECT_EQ(cached(Branch(12, 30), Branch(12, 30)), 0);
  EXPECT_EQ(cached(Branch(12, 31), Branch(12, 31)), 30);
}

TEST(KvSlots, ReusesNothingOfAnotherDomain) {
  KvSlots slots({.num_slots = 1, .num_blocks = 16, .block_tokens = 4});
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease first, slots.Acquire(Tokens(8), 12, true, "alice"));
  slots.Release(first.slot, Tokens(8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease others, slots.Acquire(Tokens(8), 12, true, "bob"));
  EXPECT_EQ(others.cached_tokens, 0);
  slots.Release(others.slot, Tokens(8));
  ASSERT_OK_AND_ASSIGN(const KvSlots::Lease own, slots.Acquire(Tokens(8), 12, true, "bob"));
  EXPECT_EQ(own.cached_tokens, 7);
}

}  // namespace
}  // namespace ferry
