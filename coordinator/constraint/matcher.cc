#include "coordinator/constraint/matcher.h"

#include <algorithm>
#include <utility>

namespace ferry::constraint {
namespace {

constexpr size_t kMaskBytes = size_t{2} << 20;  // of one generation's cache of masks
constexpr size_t kMaxPositions = 20'000;

}  // namespace

Matcher::Matcher(std::shared_ptr<const CompiledGrammar> grammar)
    : grammar_(std::move(grammar)),
      trie_(grammar_->trie()),
      max_masks_(std::max<size_t>(4, kMaskBytes / (static_cast<size_t>(trie_.vocab_size()) / 8 + 64))),
      pushdown_(&grammar_->automaton()),
      position_(pushdown_.start()),
      path_(trie_.max_depth() + 1) {}

absl::StatusOr<const TokenMask*> Matcher::Mask() {
  KeepSmall();
  pushdown_.StartWork();
  auto it = masks_.find(position_);
  if (it == masks_.end()) {
    if (masks_.size() >= max_masks_) masks_.clear();
    it = masks_.emplace(position_, Compute()).first;
  }
  if (pushdown_.overflowed()) return ResourceExhausted("the constraint's grammar is too ambiguous: its readings are too many");
  return &it->second;
}

TokenMask Matcher::Compute() {
  TokenMask mask(trie_.vocab_size());
  // A copy: walks add positions, and so may move them.
  const std::vector<Pushdown::Configuration> configurations = pushdown_.Configurations(position_);
  for (const Pushdown::Configuration& configuration : configurations) {
    const std::shared_ptr<const InsideTokens> inside = grammar_->Inside(configuration.state);
    if (pushdown_.overflowed()) break;  // Mask fails
    mask.Allow(inside->mask);
    for (const InsideTokens::Exit& exit : inside->exits) {
      const Position outside = pushdown_.Leave({exit.state, configuration.frame});
      if (pushdown_.CanGoOn(outside)) WalkBelow(exit.node, outside, &mask);
    }
  }
  return mask;
}

// Allows the tokens below a node. `position`: where the text is before the first of them.
void Matcher::WalkBelow(int32_t node, Position position, TokenMask* mask) {
  const std::span<const TokenTrie::Node> nodes = trie_.nodes();
  path_[nodes[node].depth + 1] = position;
  for (int32_t i = node + 1; i < nodes[node].end;) {
    const Position to = pushdown_.Advance(path_[nodes[i].depth], nodes[i].byte);
    if (to == kNowhere) {
      i = nodes[i].end;
      continue;
    }
    for (int32_t token = nodes[i].token; token >= 0; token = trie_.SameBytes(token)) mask->Allow(token);
    path_[nodes[i].depth + 1] = to;
    ++i;
  }
}

absl::Status Matcher::Accept(int32_t token) {
  Position position = position_;
  const bool known = token >= 0 && token < trie_.vocab_size() && !trie_.Bytes(token).empty();
  if (!known) return InvalidArgument("token %d is no text, which is all that the constraint allows", token);
  for (const uint8_t byte : trie_.Bytes(token)) {
    position = pushdown_.Advance(position, byte);
    if (position == kNowhere) return InvalidArgument("the constraint does not allow token %d here", token);
  }
  position_ = position;
  return absl::OkStatus();
}

void Matcher::KeepSmall() {
  if (pushdown_.num_positions() < kMaxPositions) return;
  masks_.clear();
  position_ = pushdown_.Forget(position_);
}

}  // namespace ferry::constraint
