#include "coordinator/constraint/token_mask.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <numeric>
#include <utility>

namespace ferry::constraint {
namespace {

constexpr size_t kInsideBytes = size_t{32} << 20;       // of each of a grammar's two caches, roughly
constexpr int64_t kMaxGroupedSteps = int64_t{1} << 19;  // of an automaton: a larger one would be long in grouping

bool MayLeave(const Automaton& automaton, StateId state) {
  return automaton.IsAccepting(state) || !automaton.Calls(state).empty();
}

// Groups of states: two are in one if texts of up to `bytes` bytes lead both to nothing, both to some state within the rule, or
// both to the same state where it may be left.
std::vector<int32_t> GroupStates(const Automaton& automaton, int32_t bytes) {
  const int32_t num_states = automaton.num_states(), num_classes = automaton.num_classes();
  std::vector<int32_t> groups(static_cast<size_t>(num_states));
  if (int64_t{num_states} * num_classes > kMaxGroupedSteps) {
    std::iota(groups.begin(), groups.end(), 0);
    return groups;
  }
  int32_t num_groups = 1;  // 0: those that cannot be left
  for (StateId state = 0; state < num_states; ++state) groups[state] = MayLeave(automaton, state) ? num_groups++ : 0;
  for (int32_t length = 1; length <= bytes; ++length) {
    std::map<std::vector<int32_t>, int32_t> known;  // a state's group, and those of the next ones
    std::vector<int32_t> finer(groups.size());
    std::vector<int32_t> key(static_cast<size_t>(num_classes) + 1);
    for (StateId state = 0; state < num_states; ++state) {
      key[0] = groups[state];
      for (int32_t each = 0; each < num_classes; ++each) {
        const StateId next = automaton.Next(state, each);
        key[static_cast<size_t>(each) + 1] = next == kDead ? -1 : groups[next];
      }
      finer[state] = known.emplace(key, static_cast<int32_t>(known.size())).first->second;
    }
    const auto count = static_cast<int32_t>(known.size());
    groups = std::move(finer);
    if (count == num_groups) break;
    num_groups = count;
  }
  return groups;
}

}  // namespace

void TokenMask::Allow(const TokenMask& other) {
  for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
}

int32_t TokenMask::Count() const {
  int32_t count = 0;
  for (const uint64_t word : words_) count += std::popcount(word);
  return count;
}

CompiledGrammar::CompiledGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie)
    : automaton_(std::move(automaton)),
      trie_(std::move(trie)),
      groups_(GroupStates(automaton_, TokenTrie::kShortBytes)),
      max_cached_(std::max<size_t>(16, kInsideBytes / (static_cast<size_t>(trie_->vocab_size()) / 8 + 4096))) {}

std::shared_ptr<const InsideTokens> CompiledGrammar::Inside(StateId state) const {
  {
    absl::MutexLock lock(&mutex_);
    if (const auto it = inside_.find(state); it != inside_.end()) return it->second;
  }
  auto computed = std::make_shared<InsideTokens>(*Short(state));
  AddLong(state, computed.get());
  absl::MutexLock lock(&mutex_);
  if (inside_.size() >= max_cached_) inside_.clear();
  return inside_.emplace(state, std::move(computed)).first->second;
}

std::shared_ptr<const InsideTokens> CompiledGrammar::Short(StateId state) const {
  const int32_t group = groups_[state];
  {
    absl::MutexLock lock(&mutex_);
    if (const auto it = short_.find(group); it != short_.end()) return it->second;
  }
  auto computed = std::make_shared<const InsideTokens>(ComputeShort(state));
  absl::MutexLock lock(&mutex_);
  if (short_.size() >= max_cached_) short_.clear();
  return short_.emplace(group, std::move(computed)).first->second;
}

InsideTokens CompiledGrammar::ComputeShort(StateId state) const {
  InsideTokens result = {.mask = TokenMask(trie_->vocab_size()), .exits = {}};
  const std::span<const TokenTrie::Node> nodes = trie_->nodes();
  std::array<StateId, TokenTrie::kShortBytes + 1> states;  // [depth]: before that byte
  states[0] = state;
  for (int32_t i = 0; i < static_cast<int32_t>(nodes.size());) {
    const TokenTrie::Node& node = nodes[i];
    const StateId to =
        node.depth >= TokenTrie::kShortBytes ? kDead : automaton_.Next(states[node.depth], automaton_.ClassOf(node.byte));
    if (to == kDead) {
      i = node.end;
      continue;
    }
    for (int32_t token = node.token; token >= 0; token = trie_->SameBytes(token)) result.mask.Allow(token);
    states[node.depth + 1] = to;
    ++i;
    if (i < node.end && MayLeave(automaton_, to)) result.exits.push_back({to, i - 1});
  }
  return result;
}

void CompiledGrammar::AddLong(StateId state, InsideTokens* tokens) const {
  const std::span<const TokenTrie::LongNode> nodes = trie_->long_nodes();
  std::vector<StateId> states(static_cast<size_t>(trie_->max_depth()) + 1);  // as above
  states[0] = state;
  for (int32_t i = 0; i < static_cast<int32_t>(nodes.size());) {
    const TokenTrie::Node& node = trie_->nodes()[nodes[i].node];
    const StateId to = automaton_.Next(states[node.depth], automaton_.ClassOf(node.byte));
    if (to == kDead) {
      i = nodes[i].end;
      continue;
    }
    states[node.depth + 1] = to;
    if (node.depth >= TokenTrie::kShortBytes) {
      for (int32_t token = node.token; token >= 0; token = trie_->SameBytes(token)) tokens->mask.Allow(token);
      if (nodes[i].node + 1 < node.end && MayLeave(automaton_, to)) tokens->exits.push_back({to, nodes[i].node});
    }
    ++i;
  }
}

}  // namespace ferry::constraint
