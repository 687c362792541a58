#include "coordinator/generation/kv_slots.h"

#include <algorithm>
#include <utility>

namespace ferry {
namespace {

// A state is saved when it spares at least so many tokens: fewer are computed about as quickly as a state is copied twice.
constexpr int64_t kTokensWorthAState = 64;
// A request waits for another's rows if those are so many: fewer cost little in a step that is made anyway.
constexpr int64_t kTokensWorthWaiting = 64;
// A snapshot in a slot that cannot be saved is given up for a shorter prefix if that is at least this part of the prompt: less is
// not worth another sequence.
constexpr int64_t kPartWorthASequence = 10;

int64_t CommonOf(std::span<const int32_t> a, std::span<const int32_t> b) { return std::ranges::mismatch(a, b).in1 - a.begin(); }

}  // namespace

KvSlots::KvSlots(const KvSlotsOptions& options) : options_(options), tree_(options.num_blocks, options.num_host_blocks) {
  Clear();
}

void KvSlots::Clear() {
  snapshots_.clear();
  slots_.assign(options_.num_slots, Slot());
  tree_.Clear();
  freed_.clear();
  free_states_.clear();
  for (int64_t i = options_.num_host_states; i > 0; --i) free_states_.push_back(static_cast<int32_t>(i - 1));
  reserved_ = num_saved_ = num_tails_ = 0;
}

// ------------------------------------------------------------------------------------------------------------- finding a prefix

std::vector<PrefixTree::Node*> KvSlots::PathOf(const Node& root, std::span<const int32_t> prompt) const {
  std::vector<Node*> path;
  const Node* last = &root;
  for (; static_cast<int64_t>(prompt.size()) >= options_.block_tokens; prompt = prompt.subspan(options_.block_tokens)) {
    Node* const next = tree_.Find(*last, prompt.first(options_.block_tokens));
    if (next == nullptr) break;
    path.push_back(next);
    last = next;
  }
  return path;
}

KvSlots::Match KvSlots::FindMatch(std::span<const int32_t> prompt, const std::string& domain) const {
  Match match;
  const Node* const root = tree_.FindRoot(domain);
  if (root == nullptr) return match;
  const int64_t most = static_cast<int64_t>(prompt.size()) - 1, block_tokens = options_.block_tokens;
  const std::vector<Node*> path = PathOf(*root, prompt);
  const int64_t known = static_cast<int64_t>(path.size()) * block_tokens;
  if (!has_state()) {
    match.tokens = std::min(known, most);
    if (known > most) {
      match.partial = match.tokens % block_tokens > 0 ? path[match.tokens / block_tokens] : nullptr;
    } else {
      const Node& last = path.empty() ? *root : *path.back();
      const auto [child, common] = tree_.FindPartial(last, prompt.subspan(known, most - known));
      match.partial = child;
      match.tokens += common;
    }
  }
  for (const auto& [number, snapshot] : snapshots_) ConsiderSnapshot(number, snapshot, prompt, root, path, &match);
  match.nodes.assign(path.begin(), path.begin() + std::min<int64_t>(path.size(), match.tokens / block_tokens));
  match.known = std::min(known, most / block_tokens * block_tokens);
  return match;
}

void KvSlots::ConsiderSnapshot(uint64_t number, const Snapshot& snapshot, std::span<const int32_t> prompt, const Node* root,
                               std::span<Node* const> path, Match* match) const {
  const int64_t most = static_cast<int64_t>(prompt.size()) - 1, block_tokens = options_.block_tokens;
  // Up to the part that prompt and snapshot have in common. Above the rings' beginning nothing can be used.
  Node* common = snapshot.node;
  Node* below = nullptr;
  while (common->depth() > static_cast<int64_t>(path.size()) || (common->depth() > 0 && path[common->depth() - 1] != common)) {
    if (options_.window == 0 || options_.states || common->depth() * block_tokens <= snapshot.first) return;
    below = common;
    common = common->parent();
  }
  if (common->depth() == 0 && common != root) return;
  const int64_t whole = common->depth() * block_tokens;
  const std::span<const int32_t> behind = below == nullptr ? std::span(snapshot.tail) : below->tokens();
  const int64_t tokens = std::min(most, whole + CommonOf(behind, prompt.subspan(whole)));
  const bool in_tail = below == nullptr && tokens > whole;

  const bool at_end = tokens == snapshot.position;
  if (options_.states && !at_end) return;
  if (options_.window > 0 && std::max<int64_t>(0, tokens - options_.window + 1) < snapshot.first) return;
  if (!has_state() && !in_tail) return;
  // In a slot, going on before the end gives the rest up unless it can be saved.
  const bool gives_up = snapshot.slot != kNone && !at_end && options_.num_host_states == 0;
  if (gives_up && tokens * kPartWorthASequence < static_cast<int64_t>(prompt.size())) return;
  const bool better = tokens > match->tokens || (tokens == match->tokens && tokens > 0 && snapshot.slot != kNone && at_end);
  if (!better) return;
  match->tokens = tokens;
  match->snapshot = number;
  match->in_tail = in_tail;
  match->partial = in_tail || tokens % block_tokens == 0 ? nullptr : tokens < whole ? path[tokens / block_tokens] : below;
}

// --------------------------------------------------------------------------------------------------------------------- a lease

absl::StatusOr<KvSlots::Lease> KvSlots::Acquire(std::span<const int32_t> prompt, int64_t reserve_tokens, bool reuse,
                                                const std::string& domain) {
  if (std::ranges::all_of(slots_, &Slot::leased)) return ResourceExhausted("all %d slots are in use", options_.num_slots);
  const Match match = reuse ? FindMatch(prompt, domain) : Match();
  const auto on_device = [](const Node* node) { return node->block() != PrefixTree::kNoBlock; };
  const auto count = [](const auto& nodes, const auto& is) { return static_cast<int64_t>(std::ranges::count_if(nodes, is)); };
  const bool in_place = match.in_tail && snapshots_.at(match.snapshot).slot != kNone;
  const int64_t free =
      free_blocks() - (in_place ? 1 : 0) - count(match.nodes, [&](const Node* node) { return on_device(node) && !node->held(); });
  const int64_t needed = BlocksFor(reserve_tokens) - count(match.nodes, on_device) - (in_place ? 1 : 0);
  if (needed > free) {
    return ResourceExhausted("%d KV blocks are needed, %d of %d are free", needed, free, options_.num_blocks);
  }

  Node* const root = tree_.HoldRoot(domain);
  for (Node* const node : match.nodes) tree_.Hold(node);
  Slot& slot = ChooseSlot(match);
  slot.leased = true;
  slot.root = root;
  slot.nodes = match.nodes;
  slot.last_used = ++uses_;
  slot.save_at = PlacesToSave(match, static_cast<int64_t>(prompt.size()));
  // First, because what it is copied from may make room for the others.
  TakePartial(match, &slot);
  matched_ = 0;
  for (Node* const node : match.nodes) {
    if (!on_device(node)) tree_.BringBack(node, TakeBlock());
  }
  std::vector<int32_t> blocks;
  for (const Node* const node : match.nodes) blocks.push_back(node->block());
  slot.blocks.insert(slot.blocks.begin(), blocks.begin(), blocks.end());
  slot.reserved = BlocksFor(reserve_tokens) - static_cast<int64_t>(slot.blocks.size());
  reserved_ += slot.reserved;
  stats_.prompt_tokens += std::ssize(prompt);
  stats_.cached_tokens += match.tokens;
  return Lease{.slot = SlotId(IdOf(slot)), .cached_tokens = match.tokens};
}

bool KvSlots::WorthWaitingFor(SlotId id, std::span<const int32_t> known, int64_t submitted,
                              std::span<const int32_t> prompt) const {
  if (submitted == std::ssize(known) && !has_state()) return false;
  const int64_t most = std::min(CommonOf(known, prompt), std::ssize(prompt) - 1);
  if (!has_state()) return most / options_.block_tokens * options_.block_tokens - submitted >= kTokensWorthWaiting;
  // The places where it will save its state are worth a state.
  return std::ranges::any_of(slots_[id.value()].save_at, [&](int64_t place) {
    return place <= most || (!options_.states && place - most <= kStateSlack && most >= kTokensWorthWaiting);
  });
}

int64_t KvSlots::BlocksNeeded(std::span<const int32_t> prompt, int64_t reserve_tokens, bool reuse,
                              const std::string& domain) const {
  const Match match = reuse ? FindMatch(prompt, domain) : Match();
  return BlocksFor(reserve_tokens) - static_cast<int64_t>(std::ranges::count_if(match.nodes, &Node::held));
}

int64_t KvSlots::BlocksOf(SlotId id) const {
  const Slot& slot = slots_[id.value()];
  const auto shared = static_cast<int64_t>(std::ranges::count_if(slot.nodes, &Node::shared));
  return static_cast<int64_t>(slot.blocks.size()) - shared + slot.reserved;
}

KvSlots::Slot& KvSlots::ChooseSlot(const Match& match) {
  matched_ = match.snapshot;
  if (match.snapshot != 0) {
    Snapshot& snapshot = snapshots_.at(match.snapshot);
    snapshot.last_used = ++uses_;
    if (snapshot.slot != kNone) {
      Slot& slot = slots_[snapshot.slot];
      if (snapshot.position != match.tokens && FindSame(snapshot, /*saved=*/true) == 0) {
        Snapshot saved = snapshot;
        if (Save(slot, snapshot.tail_block, &saved)) AddSnapshot(std::move(saved));
      }
      GoOnInSlot(match.snapshot, match.in_tail, &slot);
      return slot;
    }
  }
  Slot* chosen = nullptr;
  const auto age = [](const Slot& slot) { return slot.snapshot == 0 ? 0 : slot.last_used; };
  for (Slot& slot : slots_) {
    if (!slot.leased && (chosen == nullptr || age(slot) < age(*chosen))) chosen = &slot;
  }
  if (match.snapshot == 0) {
    VacateSlot(chosen);
    chosen->ring_first = 0;
    return *chosen;
  }
  const Snapshot& snapshot = snapshots_.at(match.snapshot);
  Node* const node = snapshot.node;
  tree_.Hold(node);
  VacateSlot(chosen);
  tree_.ReleaseUnused(node);
  chosen->ring_first = snapshot.first;
  if (snapshot.host_state != kNone) {
    tree_.moves().push_back(
        {.kind = CacheMove::Kind::kLoadState, .host = snapshot.host_state, .slot = IdOf(*chosen), .position = snapshot.position});
  }
  return *chosen;
}

void KvSlots::GoOnInSlot(uint64_t number, bool keeps_tail, Slot* slot) {
  Snapshot& snapshot = snapshots_.at(number);
  slot->ring_first = snapshot.first;
  if (keeps_tail) {
    slot->blocks = {std::exchange(snapshot.tail_block, kNone)};
    --num_tails_;
  }
  Drop(number);
}

void KvSlots::TakePartial(const Match& match, Slot* slot) {
  if (!slot->blocks.empty()) return;  // the tail of a snapshot that was in this slot
  if (match.in_tail) {
    const int32_t host = snapshots_.at(match.snapshot).host_tail;
    slot->blocks = {TakeBlock()};
    tree_.moves().push_back({.kind = CacheMove::Kind::kLoadBlock, .block = slot->blocks.front(), .host = host});
    return;
  }
  Node* const partial = match.partial;
  if (partial == nullptr) return;
  const int32_t from = partial->block();
  if (from != PrefixTree::kNoBlock) {  // may be the very block that is taken, which holds the tokens then
    slot->blocks = {TakeBlock()};
    if (slot->blocks.front() == from) return;
    tree_.moves().push_back({.kind = CacheMove::Kind::kCopyBlock, .block = slot->blocks.front(), .from_block = from});
    return;
  }
  tree_.Hold(partial);
  slot->blocks = {TakeBlock()};
  tree_.moves().push_back({.kind = CacheMove::Kind::kLoadBlock, .block = slot->blocks.front(), .host = partial->host_block()});
  tree_.ReleaseUnused(partial);
}

std::vector<int64_t> KvSlots::PlacesToSave(const Match& match, int64_t prompt_tokens) const {
  if (!has_state() || options_.num_host_states == 0) return {};
  std::vector<int64_t> places;
  // The state behind the prompt serves the places shortly before it, unless it goes only forward.
  const bool served = !options_.states && prompt_tokens - match.known <= kStateSlack;
  if (match.known - match.tokens >= kTokensWorthAState && !served) places.push_back(match.known);
  if (prompt_tokens - (places.empty() ? match.tokens : places.back()) >= kTokensWorthAState) places.push_back(prompt_tokens);
  return places;
}

int64_t KvSlots::StepEnd(SlotId id, int64_t first, int64_t end) const {
  for (const int64_t place : slots_[id.value()].save_at) {
    if (place > first) return std::min(place, end);
  }
  return end;
}

std::vector<int32_t> KvSlots::Plan(SlotId id, std::span<const int32_t> tokens, int64_t first) {
  Slot& slot = slots_[id.value()];
  while (!slot.save_at.empty() && slot.save_at.front() <= first) {
    if (slot.save_at.front() == first) SaveRunning(tokens.first(first), slot);
    slot.save_at.erase(slot.save_at.begin());
  }
  const int64_t num_blocks = BlocksFor(static_cast<int64_t>(tokens.size()));
  while (static_cast<int64_t>(slot.blocks.size()) < num_blocks) {
    slot.blocks.push_back(TakeBlock());
    --slot.reserved;
    --reserved_;
  }
  std::vector<int32_t> table(slot.blocks.begin(), slot.blocks.begin() + num_blocks);
  Share(tokens, &slot);
  return table;
}

void KvSlots::Share(std::span<const int32_t> tokens, Slot* slot) {
  for (int64_t i = static_cast<int64_t>(slot->nodes.size()); (i + 1) * options_.block_tokens <= std::ssize(tokens); ++i) {
    const std::span<const int32_t> part = tokens.subspan(i * options_.block_tokens, options_.block_tokens);
    Node* const parent = slot->nodes.empty() ? slot->root : slot->nodes.back();
    int32_t& block = slot->blocks[i];
    Node* node = tree_.Find(*parent, part);
    if (node == nullptr) {
      node = tree_.Add(parent, part, block);
    } else {  // another sequence has computed the same: one block is enough
      if (node->held()) {
        freed_.push_back(std::exchange(block, node->block()));  // this step still writes it
      } else {
        tree_.Replace(node, block);
      }
      tree_.Hold(node);
    }
    slot->nodes.push_back(node);
  }
}

std::vector<CacheMove> KvSlots::TakeMoves() {
  for (const int32_t block : std::exchange(freed_, {})) tree_.FreeBlock(block);
  std::vector<CacheMove> moves = std::exchange(tree_.moves(), {});
  for (const CacheMove& move : moves) {
    stats_.blocks_saved += move.kind == CacheMove::Kind::kSaveBlock;
    stats_.blocks_loaded += move.kind == CacheMove::Kind::kLoadBlock;
    stats_.states_saved += move.kind == CacheMove::Kind::kSaveState;
    stats_.states_loaded += move.kind == CacheMove::Kind::kLoadState;
  }
  return moves;
}

void KvSlots::Release(SlotId id, std::span<const int32_t> written) {
  Slot& slot = slots_[id.value()];
  reserved_ -= std::exchange(slot.reserved, 0);
  slot.leased = false;
  slot.last_used = ++uses_;
  Snapshot snapshot = SnapshotOf(slot, written);
  snapshot.slot = IdOf(slot);
  size_t kept = slot.nodes.size();
  if (!snapshot.tail.empty()) {
    snapshot.tail_block = slot.blocks[kept++];
    ++num_tails_;
  }
  for (size_t i = kept; i < slot.blocks.size(); ++i) tree_.FreeBlock(slot.blocks[i]);
  if (!snapshot.tail.empty() || (has_state() && snapshot.position > 0)) {
    if (const uint64_t same = FindSame(snapshot, /*saved=*/false); same != 0) Drop(same);
    slot.snapshot = AddSnapshot(std::move(snapshot));
  }
  for (; !slot.nodes.empty(); slot.nodes.pop_back()) tree_.Release(slot.nodes.back(), uses_);
  tree_.Release(slot.root, uses_);
  slot.root = nullptr;
  slot.blocks.clear();
  slot.save_at.clear();
}

int32_t KvSlots::TakeBlock() {
  if (tree_.num_free() == 0 && tree_.num_kept() == 0) {
    Slot* oldest = nullptr;
    for (Slot& slot : slots_) {
      if (slot.snapshot == 0 || snapshots_.at(slot.snapshot).tail_block == kNone) continue;
      if (oldest == nullptr || slot.last_used < oldest->last_used) oldest = &slot;
    }
    VacateSlot(oldest);  // there is one: running requests have reserved no more than there is
  }
  const int32_t block = tree_.TakeBlock();
  DropOrphans();
  return block;
}

// ------------------------------------------------------------------------------------------------------------------- snapshots

int64_t KvSlots::FirstInRing(const Slot& slot, int64_t position) const {
  return options_.window == 0 ? 0 : std::max(slot.ring_first, position - options_.ring_tokens);
}

KvSlots::Snapshot KvSlots::SnapshotOf(const Slot& slot, std::span<const int32_t> tokens) const {
  const std::span<const int32_t> tail = tokens.subspan(slot.nodes.size() * options_.block_tokens);
  const int64_t position = std::ssize(tokens);
  return {.node = slot.nodes.empty() ? slot.root : slot.nodes.back(),
          .tail = {tail.begin(), tail.end()},
          .position = position,
          .first = FirstInRing(slot, position)};
}

uint64_t KvSlots::AddSnapshot(Snapshot snapshot) {
  snapshot.last_used = ++uses_;
  const uint64_t number = ++last_number_;
  tree_.Attach(snapshot.node, number);
  snapshots_.emplace(number, std::move(snapshot));
  return number;
}

uint64_t KvSlots::FindSame(const Snapshot& like, bool saved) const {
  for (const auto& [number, snapshot] : snapshots_) {
    if (snapshot.node == like.node && snapshot.tail == like.tail && (snapshot.slot == kNone) == saved) return number;
  }
  return 0;
}

bool KvSlots::Save(const Slot& slot, int32_t tail_block, Snapshot* snapshot) {
  if (num_saved_ == options_.num_host_states) {
    const auto is_older = [&](const auto& a, const auto& b) {
      const auto rank = [&](const auto& entry) {  // those that may not go are the last
        return std::pair(entry.second.slot != kNone || entry.first == matched_, entry.second.last_used);
      };
      return rank(a) < rank(b);
    };
    const auto oldest = std::ranges::min_element(snapshots_, is_older);
    if (oldest == snapshots_.end() || oldest->second.slot != kNone || oldest->first == matched_) return false;
    Drop(oldest->first);
  }
  if (!snapshot->tail.empty()) {
    snapshot->host_tail = tree_.TakeHostBlock();
    DropOrphans();
    if (snapshot->host_tail == kNone) return false;
    tree_.moves().push_back({.kind = CacheMove::Kind::kSaveBlock, .block = tail_block, .host = snapshot->host_tail});
  }
  if (has_state()) {
    snapshot->host_state = free_states_.back();
    free_states_.pop_back();
    tree_.moves().push_back(
        {.kind = CacheMove::Kind::kSaveState, .host = snapshot->host_state, .slot = IdOf(slot), .position = snapshot->position});
  }
  if (options_.window > 0) {
    const int64_t first_block = FirstStateBlock(snapshot->position, options_.window, options_.block_tokens);
    snapshot->first = std::max(snapshot->first, first_block * options_.block_tokens);
  }
  snapshot->slot = snapshot->tail_block = kNone;
  ++num_saved_;
  return true;
}

void KvSlots::SaveRunning(std::span<const int32_t> tokens, const Slot& slot) {
  Snapshot snapshot = SnapshotOf(slot, tokens);
  if (const uint64_t same = FindSame(snapshot, /*saved=*/true); same != 0) {
    snapshots_.at(same).last_used = ++uses_;
    return;
  }
  const int32_t tail_block = snapshot.tail.empty() ? kNone : slot.blocks[slot.nodes.size()];
  if (Save(slot, tail_block, &snapshot)) AddSnapshot(std::move(snapshot));
}

void KvSlots::VacateSlot(Slot* slot) {
  if (slot->snapshot == 0) return;
  Snapshot& snapshot = snapshots_.at(slot->snapshot);
  Node* const node = snapshot.node;
  tree_.Hold(node);
  if (FindSame(snapshot, /*saved=*/true) == 0) {
    Snapshot saved = snapshot;
    if (Save(*slot, snapshot.tail_block, &saved)) AddSnapshot(std::move(saved));
  }
  Drop(slot->snapshot);
  tree_.ReleaseUnused(node);
}

void KvSlots::Drop(uint64_t number) {
  const Snapshot snapshot = std::move(snapshots_.at(number));
  snapshots_.erase(number);
  if (snapshot.slot != kNone) {
    slots_[snapshot.slot].snapshot = 0;
  } else {
    --num_saved_;
  }
  if (snapshot.tail_block != kNone) {
    tree_.FreeBlock(snapshot.tail_block);
    --num_tails_;
  }
  if (snapshot.host_tail != kNone) tree_.FreeHostBlock(snapshot.host_tail);
  if (snapshot.host_state != kNone) free_states_.push_back(snapshot.host_state);
  if (snapshot.node != nullptr) tree_.Detach(snapshot.node, number);
}

void KvSlots::DropOrphans() {
  for (const uint64_t number : tree_.TakeOrphans()) {
    snapshots_.at(number).node = nullptr;  // has gone
    Drop(number);
  }
}

}  // namespace ferry
