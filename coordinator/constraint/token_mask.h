#pragma once

// Which tokens may follow a text: masks over a vocabulary, computed when first asked for.
//
// A token that stays within the rule that is being read depends on that rule's state alone, whatever lies on the stack:
// the mask of such tokens is computed once a state and shared by all users of the grammar. A token that leaves the
// rule is tested against the stack, and only from where it leaves.
//
// Many states differ only in what long texts they take, such as the places within a string of at most 200 characters. States that
// no text of up to TokenTrie::kShortBytes bytes tells apart share what short tokens do; only long tokens are walked for each.

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/constraint/automaton.h"
#include "coordinator/constraint/pushdown.h"
#include "coordinator/constraint/token_trie.h"

namespace ferry::constraint {

// One bit a token.
class TokenMask {
 public:
  explicit TokenMask(int32_t vocab_size) : words_((vocab_size + 63) / 64), vocab_size_(vocab_size) {}
  bool Allows(int32_t id) const { return (words_[id >> 6] >> (id & 63) & 1) != 0; }
  void Allow(int32_t id) { words_[id >> 6] |= uint64_t{1} << (id & 63); }
  void Allow(const TokenMask& other);
  int32_t vocab_size() const { return vocab_size_; }
  int32_t Count() const;
  std::span<const uint64_t> words() const { return words_; }

 private:
  std::vector<uint64_t> words_;
  int32_t vocab_size_;
};

// What the tokens do that begin in one state of a rule.
struct InsideTokens {
  struct Exit {
    StateId state;  // which can end its rule or call another
    int32_t node;   // of the trie, whose descendants go on from there
  };
  TokenMask mask;  // tokens that end within the rule
  std::vector<Exit> exits;
};

// A grammar compiled for a vocabulary; shared by requests. Thread-safe.
class CompiledGrammar {
 public:
  CompiledGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie);

  const Automaton& automaton() const { return automaton_; }
  const TokenTrie& trie() const { return *trie_; }
  std::shared_ptr<const InsideTokens> Inside(StateId state) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // What tokens of up to kShortBytes bytes do, and what longer ones do.
  InsideTokens ComputeShort(StateId state) const;
  void AddLong(StateId state, InsideTokens* tokens) const;
  std::shared_ptr<const InsideTokens> Short(StateId state) const ABSL_LOCKS_EXCLUDED(mutex_);

  const Automaton automaton_;
  const std::shared_ptr<const TokenTrie> trie_;
  const std::vector<int32_t> groups_;  // by state: those of one group are alike for short tokens
  const size_t max_cached_;            // of each of the two
  mutable absl::Mutex mutex_;
  // Emptied when full: the states in use come back at once.
  mutable std::unordered_map<StateId, std::shared_ptr<const InsideTokens>> inside_ ABSL_GUARDED_BY(mutex_);
  mutable std::unordered_map<int32_t, std::shared_ptr<const InsideTokens>> short_ ABSL_GUARDED_BY(mutex_);  // by group
};

}  // namespace ferry::constraint
