#include "coordinator/constraint/token_mask.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace ferry::constraint {
namespace {

constexpr size_t kInsideBytes = size_t{64} << 20;  // of one grammar's cache, roughly

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
      max_cached_(std::max<size_t>(16, kInsideBytes / (static_cast<size_t>(trie_->vocab_size()) / 8 + 4096))) {}

std::shared_ptr<const InsideTokens> CompiledGrammar::Inside(StateId state) const {
  {
    absl::MutexLock lock(&mutex_);
    if (const auto it = inside_.find(state); it != inside_.end()) return it->second;
  }
  auto computed = std::make_shared<const InsideTokens>(Compute(state));
  absl::MutexLock lock(&mutex_);
  if (inside_.size() >= max_cached_) inside_.clear();
  return inside_.emplace(state, std::move(computed)).first->second;
}

InsideTokens CompiledGrammar::Compute(StateId state) const {
  InsideTokens result = {.mask = TokenMask(trie_->vocab_size()), .exits = {}};
  const std::span<const TokenTrie::Node> nodes = trie_->nodes();
  std::vector<StateId> states(trie_->max_depth() + 1);  // [depth]: before that byte
  states[0] = state;
  for (int32_t i = 0; i < static_cast<int32_t>(nodes.size());) {
    const TokenTrie::Node& node = nodes[i];
    const StateId to = automaton_.Next(states[node.depth], automaton_.ClassOf(node.byte));
    if (to == kDead) {
      i = node.end;
      continue;
    }
    for (int32_t token = node.token; token >= 0; token = trie_->SameBytes(token)) result.mask.Allow(token);
    states[node.depth + 1] = to;
    ++i;
    if (i < node.end && (automaton_.IsAccepting(to) || !automaton_.Calls(to).empty())) result.exits.push_back({to, i - 1});
  }
  return result;
}

}  // namespace ferry::constraint
