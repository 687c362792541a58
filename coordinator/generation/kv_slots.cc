#include "coordinator/generation/kv_slots.h"

#include <algorithm>

namespace ferry {

KvSlots::KvSlots(const KvSlotsOptions& options) : options_(options), slots_(options.num_slots) { Clear(); }

void KvSlots::Clear() {
  slots_.assign(options_.num_slots, Slot());
  free_.resize(options_.num_blocks);
  for (int64_t i = 0; i < options_.num_blocks; ++i) free_[i] = static_cast<int32_t>(options_.num_blocks - 1 - i);
  leased_blocks_ = 0;
}

int64_t KvSlots::Usable(const Slot& slot, std::span<const int32_t> prompt) const {
  const auto differ = std::mismatch(slot.tokens.begin(), slot.tokens.end(), prompt.begin(), prompt.end());
  const int64_t common = std::min<int64_t>(differ.first - slot.tokens.begin(), static_cast<int64_t>(prompt.size()) - 1);
  if (options_.states && common < static_cast<int64_t>(slot.tokens.size())) return 0;
  // A shorter prefix needs earlier positions of the ring, so if this one is gone all are.
  const bool in_ring = options_.window == 0 || std::max<int64_t>(0, common - options_.window + 1) >= slot.ring_first;
  return in_ring ? common : 0;
}

absl::StatusOr<KvSlots::Lease> KvSlots::Acquire(std::span<const int32_t> prompt, int64_t reserve_tokens, bool reuse,
                                                const std::string& domain) {
  Slot* best = nullptr;
  int64_t best_usable = 0;
  Slot* oldest = nullptr;  // empty slots count as the oldest
  for (Slot& slot : slots_) {
    if (slot.leased) continue;
    const int64_t usable = reuse && slot.domain == domain ? Usable(slot, prompt) : 0;
    if (usable > best_usable) best = &slot, best_usable = usable;
    const auto age = [](const Slot& s) { return s.tokens.empty() ? 0 : s.last_used; };
    if (oldest == nullptr || age(slot) < age(*oldest)) oldest = &slot;
  }
  if (oldest == nullptr) return ResourceExhausted("all %d slots are in use", options_.num_slots);
  Slot& chosen = best != nullptr && best_usable * 10 >= static_cast<int64_t>(prompt.size()) ? *best : *oldest;
  const int64_t usable = reuse && chosen.domain == domain ? Usable(chosen, prompt) : 0;

  const int64_t needed = BlocksFor(reserve_tokens);
  if (needed > free_blocks()) {
    return ResourceExhausted("%d KV blocks are needed, %d of %d are free", needed, free_blocks(), options_.num_blocks);
  }
  chosen.domain = domain;
  chosen.leased = true;  // from here on it is not evicted
  while (static_cast<int64_t>(chosen.blocks.size()) > needed) {
    free_.push_back(chosen.blocks.back());
    chosen.blocks.pop_back();
  }
  while (static_cast<int64_t>(chosen.blocks.size()) < needed) {
    if (free_.empty()) {
      Slot* victim = nullptr;
      for (Slot& slot : slots_) {
        if (slot.leased || slot.blocks.empty()) continue;
        if (victim == nullptr || slot.last_used < victim->last_used) victim = &slot;
      }
      Forget(*victim);  // there is one: needed <= free_blocks()
    }
    chosen.blocks.push_back(free_.back());
    free_.pop_back();
  }
  leased_blocks_ += needed;
  chosen.tokens.clear();
  if (usable == 0) chosen.ring_first = 0;
  chosen.last_used = ++uses_;
  return Lease{.slot = SlotId(static_cast<int32_t>(&chosen - slots_.data())), .cached_tokens = usable, .blocks = chosen.blocks};
}

void KvSlots::Release(SlotId id, std::span<const int32_t> written) {
  Slot& slot = slots_[id.value()];
  leased_blocks_ -= static_cast<int64_t>(slot.blocks.size());
  slot.leased = false;
  slot.last_used = ++uses_;
  slot.tokens.assign(written.begin(), written.end());
  // The ring's older rows may be missing: the lease began at its cached tokens, and rows before them may reach less far back
  // than the ring's size.
  slot.ring_first = std::max(slot.ring_first, static_cast<int64_t>(written.size()) - options_.ring_tokens);
  const int64_t kept = BlocksFor(static_cast<int64_t>(written.size()));
  while (static_cast<int64_t>(slot.blocks.size()) > kept) {
    free_.push_back(slot.blocks.back());
    slot.blocks.pop_back();
  }
}

void KvSlots::Forget(Slot& slot) {
  free_.insert(free_.end(), slot.blocks.rbegin(), slot.blocks.rend());
  slot.blocks.clear();
  slot.tokens.clear();
  slot.ring_first = 0;
}

}  // namespace ferry
