#pragma once

// From one rule's expression to its deterministic automaton: Thompson's construction, then sets of states.

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "common/status.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

// Bytes that no expression of a grammar tells apart are one class.
struct ByteClasses {
  static ByteClasses Of(const Grammar& grammar);
  std::array<uint8_t, 256> class_of{};
  std::vector<uint8_t> byte_of;
  std::vector<std::vector<uint8_t>> classes_of_set;  // of each of the grammar's byte sets
  int32_t size() const { return static_cast<int32_t>(byte_of.size()); }
};

struct Dfa {
  std::vector<int32_t> next;  // [states, classes], -1: none
  std::vector<bool> accepting;
  std::vector<std::vector<std::pair<RuleId, int32_t>>> calls;  // rule, state behind it
  int32_t size() const { return static_cast<int32_t>(accepting.size()); }
};

// What compiling one grammar may cost; all its rules draw from it.
struct CompileBudget {
  int64_t nfa_states = 1'000'000;
  int64_t dfa_states = 60'000;
  int64_t work = 30'000'000;  // expressions, and members of sets of states, that were looked at
};

class DfaBuilder {
 public:
  // `nullable`: whether each rule may be empty. All must outlive the result.
  DfaBuilder(const Grammar* grammar, const ByteClasses* classes, const std::vector<bool>* nullable, CompileBudget* budget)
      : grammar_(*grammar), classes_(*classes), nullable_(*nullable), budget_(*budget) {}

  // State 0 is the start; nothing leads back to it. InvalidArgument: the budget is spent.
  absl::StatusOr<Dfa> Build(ExprId expr);

 private:
  // An empty step to one or two states, or a step by a class set or a call to one.
  struct NfaState {
    enum class Kind : uint8_t { kEmpty, kBytes, kCall, kAccept };
    Kind kind = Kind::kEmpty;
    int32_t label = -1;            // kBytes: index into labels_; kCall: the rule
    int32_t to = -1, to_too = -1;  // -1: nowhere
  };
  struct Sets;

  absl::StatusOr<int32_t> AddState(NfaState state);
  // The state from which the expression is read, after which `then` follows.
  absl::StatusOr<int32_t> Emit(ExprId expr, int32_t then);
  absl::StatusOr<int32_t> EmitRepeat(const Expr& expr, int32_t then);
  absl::StatusOr<int32_t> EmitAlternate(std::span<const int32_t> starts);
  absl::StatusOr<int32_t> EmitProduct(const Expr& expr, int32_t then);
  absl::StatusOr<int32_t> EmitDfa(const Dfa& dfa, int32_t then);
  int32_t LabelOf(std::vector<uint8_t> classes);
  absl::StatusOr<Dfa> Determinise(int32_t start);
  absl::Status Close(std::vector<int32_t>* states);

  const Grammar& grammar_;
  const ByteClasses& classes_;
  const std::vector<bool>& nullable_;
  CompileBudget& budget_;
  std::vector<NfaState> nfa_;
  std::vector<std::vector<uint8_t>> labels_;
  std::map<std::vector<uint8_t>, int32_t> label_ids_;
  std::vector<int32_t> marks_;  // [nfa_]: the closure that saw a state last
  int32_t mark_ = 0;
};

}  // namespace ferry::constraint
