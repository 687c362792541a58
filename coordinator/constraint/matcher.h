#pragma once

// One generation under a constraint: what it has produced and which tokens may come next.

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "common/status.h"
#include "coordinator/constraint/pushdown.h"
#include "coordinator/constraint/token_mask.h"

namespace ferry::constraint {

// One thread at a time.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const CompiledGrammar> grammar);
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  // Tokens that may follow: every byte of one is allowed, and bytes behind it can complete the text. End tokens are not
  // in it: they are allowed exactly when CanEnd(). Valid until the next call of a method that is not const.
  // ResourceExhausted: the grammar is so ambiguous that its readings exceed a bound (no JSON schema is).
  absl::StatusOr<const TokenMask*> Mask();
  // InvalidArgument: the constraint does not allow the token.
  absl::Status Accept(int32_t token);

  bool CanEnd() const { return pushdown_.CanEnd(position_); }
  // Nothing may follow but the end.
  bool MustEnd() const { return !pushdown_.CanGoOn(position_); }

 private:
  TokenMask Compute();
  void WalkBelow(int32_t node, Position position, TokenMask* mask);
  void KeepSmall();

  const std::shared_ptr<const CompiledGrammar> grammar_;
  const TokenTrie& trie_;
  const size_t max_masks_;
  Pushdown pushdown_;
  Position position_;
  std::unordered_map<Position, TokenMask> masks_;
  std::vector<Position> path_;  // of a walk, by depth
};

}  // namespace ferry::constraint
