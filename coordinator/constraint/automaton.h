#pragma once

// A grammar as tables: every rule is a deterministic automaton whose steps are bytes or calls of other rules; together
// with a stack they accept the grammar's texts (pushdown.h).
//
// A rule's automaton accepts its texts except the empty one; where a rule may be empty, its callers have a way around the
// call. So no call returns before it has read a byte, which keeps the work behind one byte finite and in one order.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

using StateId = int32_t;  // of all rules' states together
inline constexpr StateId kDead = -1;

class Automaton {
 public:
  struct Call {
    RuleId rule;
    StateId then;  // where the caller goes on
  };

  // InvalidArgument: a rule without a finite text is the root, a rule calls itself before it reads a byte (named), or the
  // grammar is too large: its expressions, its states or the work to find them exceed a bound.
  static absl::StatusOr<Automaton> Compile(const Grammar& grammar);

  int32_t num_states() const { return static_cast<int32_t>(accepting_.size()); }
  int32_t num_classes() const { return num_classes_; }
  uint8_t ClassOf(uint8_t byte) const { return class_of_[byte]; }
  uint8_t ByteOf(int32_t byte_class) const { return byte_of_[byte_class]; }    // one of the class
  int32_t BytesOf(int32_t byte_class) const { return bytes_of_[byte_class]; }  // how many

  StateId Next(StateId state, int32_t byte_class) const { return next_[int64_t{state} * num_classes_ + byte_class]; }
  const StateId* Row(StateId state) const { return next_.data() + int64_t{state} * num_classes_; }
  bool IsAccepting(StateId state) const { return accepting_[state]; }  // the rule may end here
  bool HasBytes(StateId state) const { return has_bytes_[state]; }
  const std::vector<Call>& Calls(StateId state) const { return calls_[state]; }
  // The rule ends here and cannot go on.
  bool IsLast(StateId state) const { return accepting_[state] && !has_bytes_[state] && calls_[state].empty(); }

  RuleId root() const { return root_; }
  bool AcceptsEmpty() const { return accepts_empty_; }
  StateId Start(RuleId rule) const { return starts_[rule]; }
  // A rule that another calls before it reads a byte has the higher rank.
  int32_t Rank(RuleId rule) const { return ranks_[rule]; }
  // Where the root returns to: accepting, without a way on.
  StateId end_state() const { return num_states() - 1; }

 private:
  friend class AutomatonBuilder;
  std::array<uint8_t, 256> class_of_{};
  std::vector<uint8_t> byte_of_;
  std::vector<int32_t> bytes_of_;
  int32_t num_classes_ = 0;
  std::vector<StateId> next_;  // [num_states, num_classes]
  std::vector<bool> accepting_, has_bytes_;
  std::vector<std::vector<Call>> calls_;
  std::vector<StateId> starts_;  // [rules]
  std::vector<int32_t> ranks_;
  RuleId root_ = 0;
  bool accepts_empty_ = false;
};

}  // namespace ferry::constraint
