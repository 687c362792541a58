#include "coordinator/constraint/byte_automata.h"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace ferry::constraint {
namespace {

absl::Status TooLarge(const char* what) {
  return InvalidArgument("the constraint is too large: it needs too many %s; want shorter bounds of repetition or fewer parts",
                         what);
}

struct HashOfStates {
  size_t operator()(const std::vector<int32_t>& states) const {
    uint64_t hash = states.size();
    for (const int32_t state : states) hash = (hash ^ static_cast<uint32_t>(state)) * 0x9E3779B97F4A7C15 + (hash >> 29);
    return hash;
  }
};

// Texts of `a` that are texts of `b` too, or are not.
Dfa Product(const Dfa& a, const Dfa& b, int32_t classes, bool both, int64_t limit) {
  Dfa result;
  std::map<std::pair<int32_t, int32_t>, int32_t> ids;
  std::vector<std::pair<int32_t, int32_t>> pairs;
  const auto id_of = [&](int32_t from_a, int32_t from_b) {
    const auto [it, added] = ids.emplace(std::pair(from_a, from_b), static_cast<int32_t>(pairs.size()));
    if (added) pairs.emplace_back(from_a, from_b);
    return it->second;
  };
  id_of(0, 0);
  for (size_t i = 0; i < pairs.size() && static_cast<int64_t>(i) < limit; ++i) {
    const auto [from_a, from_b] = pairs[i];
    const bool in_b = from_b >= 0 && b.accepting[from_b];
    result.accepting.push_back(a.accepting[from_a] && in_b == both);
    for (int32_t c = 0; c < classes; ++c) {
      const int32_t to_a = a.next[int64_t{from_a} * classes + c];
      const int32_t to_b = from_b < 0 ? -1 : b.next[int64_t{from_b} * classes + c];
      result.next.push_back(to_a < 0 || (both && to_b < 0) ? -1 : id_of(to_a, to_b));
    }
  }
  return result;
}

}  // namespace

ByteClasses ByteClasses::Of(const Grammar& grammar) {
  ByteClasses classes;
  int32_t count = 1;  // refined by one set after another
  for (const ByteSet& set : grammar.byte_sets()) {
    if (count == 256) break;
    std::array<int32_t, 256> in_set;
    in_set.fill(-1);
    std::array<bool, 256> has_outside{};
    for (int byte = 0; byte < 256; ++byte) has_outside[classes.class_of[byte]] |= !set[byte];
    for (int byte = 0; byte < 256; ++byte) {
      const uint8_t old = classes.class_of[byte];
      if (!set[byte] || !has_outside[old]) continue;
      if (in_set[old] < 0) in_set[old] = count++;
      classes.class_of[byte] = static_cast<uint8_t>(in_set[old]);
    }
  }
  classes.byte_of.resize(count);
  for (int byte = 255; byte >= 0; --byte) classes.byte_of[classes.class_of[byte]] = static_cast<uint8_t>(byte);
  for (const ByteSet& set : grammar.byte_sets()) {
    std::vector<uint8_t>& members = classes.classes_of_set.emplace_back();
    for (int32_t c = 0; c < count; ++c) {
      if (set[classes.byte_of[c]]) members.push_back(static_cast<uint8_t>(c));
    }
  }
  return classes;
}

int32_t DfaBuilder::LabelOf(std::vector<uint8_t> classes) {
  const auto [it, added] = label_ids_.emplace(std::move(classes), static_cast<int32_t>(labels_.size()));
  if (added) labels_.push_back(it->first);
  return it->second;
}

absl::StatusOr<int32_t> DfaBuilder::AddState(NfaState state) {
  if (--budget_.nfa_states < 0) return TooLarge("steps");
  nfa_.push_back(state);
  return static_cast<int32_t>(nfa_.size() - 1);
}

absl::StatusOr<int32_t> DfaBuilder::EmitAlternate(std::span<const int32_t> starts) {
  if (starts.empty()) return AddState({});  // leads nowhere
  int32_t start = starts.back();
  for (size_t i = starts.size() - 1; i-- > 0;) {
    ASSIGN_OR_RETURN(start, AddState({.to = starts[i], .to_too = start}));
  }
  return start;
}

absl::StatusOr<int32_t> DfaBuilder::EmitRepeat(const Expr& expr, int32_t then) {
  const ExprId part = expr.parts[0];
  int32_t start = then;
  if (expr.max == kUnbounded) {
    ASSIGN_OR_RETURN(start, AddState({.to_too = then}));
    ASSIGN_OR_RETURN(const int32_t body, Emit(part, start));
    nfa_[start].to = body;
  } else {
    for (int32_t i = expr.min; i < expr.max; ++i) {
      ASSIGN_OR_RETURN(const int32_t body, Emit(part, start));
      ASSIGN_OR_RETURN(start, AddState({.to = body, .to_too = then}));
    }
  }
  for (int32_t i = 0; i < expr.min; ++i) {
    ASSIGN_OR_RETURN(start, Emit(part, start));
  }
  return start;
}

absl::StatusOr<int32_t> DfaBuilder::EmitDfa(const Dfa& dfa, int32_t then) {
  std::vector<int32_t> entries;
  for (int32_t state = 0; state < dfa.size(); ++state) {
    ASSIGN_OR_RETURN(const int32_t entry, AddState({}));
    entries.push_back(entry);
  }
  for (int32_t state = 0; state < dfa.size(); ++state) {
    std::map<int32_t, std::vector<uint8_t>> classes_to;
    for (int32_t c = 0; c < classes_.size(); ++c) {
      const int32_t to = dfa.next[int64_t{state} * classes_.size() + c];
      if (to >= 0) classes_to[to].push_back(static_cast<uint8_t>(c));
    }
    std::vector<int32_t> starts;
    for (auto& [to, classes] : classes_to) {
      ASSIGN_OR_RETURN(const int32_t step,
                       AddState({.kind = NfaState::Kind::kBytes, .label = LabelOf(std::move(classes)), .to = entries[to]}));
      starts.push_back(step);
    }
    if (dfa.accepting[state]) starts.push_back(then);
    if (starts.empty()) continue;
    ASSIGN_OR_RETURN(const int32_t start, EmitAlternate(starts));
    nfa_[entries[state]].to = start;
  }
  return entries[0];
}

absl::StatusOr<int32_t> DfaBuilder::EmitProduct(const Expr& expr, int32_t then) {
  Dfa sides[2];
  for (int i = 0; i < 2; ++i) {
    // A builder of its own: its states are needed no longer than this.
    DfaBuilder builder(&grammar_, &classes_, &nullable_, &budget_);
    ASSIGN_OR_RETURN(sides[i], builder.Build(expr.parts[i]));
  }
  const Dfa product =
      Product(sides[0], sides[1], classes_.size(), expr.kind == Expr::Kind::kAnd, std::max<int64_t>(0, budget_.dfa_states));
  budget_.dfa_states -= product.size();
  if (budget_.dfa_states <= 0) return TooLarge("states");
  return EmitDfa(product, then);
}

absl::StatusOr<int32_t> DfaBuilder::Emit(ExprId id, int32_t then) {
  if (--budget_.work < 0) return TooLarge("parts");  // a repetition of nothing makes no states
  const Expr& expr = grammar_.expr(id);
  switch (expr.kind) {
    case Expr::Kind::kEmpty:
      return then;
    case Expr::Kind::kBytes:
      return AddState({.kind = NfaState::Kind::kBytes, .label = LabelOf(classes_.classes_of_set[expr.bytes]), .to = then});
    case Expr::Kind::kConcat: {
      int32_t start = then;
      for (size_t i = expr.parts.size(); i-- > 0;) {
        ASSIGN_OR_RETURN(start, Emit(expr.parts[i], start));
      }
      return start;
    }
    case Expr::Kind::kAlternate: {
      std::vector<int32_t> starts;
      for (const ExprId part : expr.parts) {
        ASSIGN_OR_RETURN(const int32_t start, Emit(part, then));
        starts.push_back(start);
      }
      return EmitAlternate(starts);
    }
    case Expr::Kind::kRepeat:
      return EmitRepeat(expr, then);
    case Expr::Kind::kCall: {
      ASSIGN_OR_RETURN(const int32_t call, AddState({.kind = NfaState::Kind::kCall, .label = expr.rule, .to = then}));
      if (!nullable_[expr.rule]) return call;
      return AddState({.to = call, .to_too = then});
    }
    case Expr::Kind::kAnd:
    case Expr::Kind::kMinus:
      return EmitProduct(expr, then);
  }
  return Internal("an expression of unknown kind");
}

// Replaces states by those with a step of their own that empty steps lead to, ascending.
absl::Status DfaBuilder::Close(std::vector<int32_t>* states) {
  marks_.resize(nfa_.size(), 0);
  ++mark_;
  std::vector<int32_t> left = std::move(*states);
  states->clear();
  while (!left.empty()) {
    const int32_t state = left.back();
    left.pop_back();
    if (state < 0 || marks_[state] == mark_) continue;
    marks_[state] = mark_;
    if (--budget_.work < 0) return TooLarge("combinations of steps");
    if (nfa_[state].kind != NfaState::Kind::kEmpty) {
      states->push_back(state);
    } else {
      left.push_back(nfa_[state].to_too);
      left.push_back(nfa_[state].to);
    }
  }
  std::sort(states->begin(), states->end());
  return absl::OkStatus();
}

struct DfaBuilder::Sets {
  std::unordered_map<std::vector<int32_t>, int32_t, HashOfStates> ids;
  std::vector<std::vector<int32_t>> members;
};

absl::StatusOr<Dfa> DfaBuilder::Determinise(int32_t start) {
  Dfa dfa;
  Sets sets;
  const auto id_of = [&](std::vector<int32_t> targets) -> absl::StatusOr<int32_t> {
    RETURN_IF_ERROR(Close(&targets));
    const auto [it, added] = sets.ids.emplace(std::move(targets), static_cast<int32_t>(sets.members.size()));
    if (added) {
      if (--budget_.dfa_states < 0) return TooLarge("states");
      sets.members.push_back(it->first);
    }
    return it->second;
  };
  // The start is a state of its own even where the same set is reached again: nothing may lead back to it.
  sets.members.push_back({start});
  RETURN_IF_ERROR(Close(&sets.members[0]));
  const int32_t num_classes = classes_.size();
  std::vector<std::vector<int32_t>> by_class(num_classes);
  for (size_t i = 0; i < sets.members.size(); ++i) {
    for (auto& targets : by_class) targets.clear();
    std::map<RuleId, std::vector<int32_t>> by_rule;
    bool accepting = false;
    for (const int32_t member : sets.members[i]) {
      const NfaState& state = nfa_[member];
      if (state.kind == NfaState::Kind::kAccept) accepting = true;
      if (state.kind == NfaState::Kind::kCall) by_rule[state.label].push_back(state.to);
      if (state.kind != NfaState::Kind::kBytes) continue;
      for (const uint8_t c : labels_[state.label]) by_class[c].push_back(state.to);
      budget_.work -= static_cast<int64_t>(labels_[state.label].size());
    }
    dfa.accepting.push_back(accepting);
    std::map<std::vector<int32_t>, int32_t> known;  // most classes lead to the same few sets
    for (int32_t c = 0; c < num_classes; ++c) {
      int32_t to = -1;
      if (!by_class[c].empty()) {
        const auto [it, added] = known.emplace(by_class[c], -1);
        if (added) {
          ASSIGN_OR_RETURN(it->second, id_of(by_class[c]));
        }
        to = it->second;
      }
      dfa.next.push_back(to);
    }
    auto& calls = dfa.calls.emplace_back();
    for (auto& [rule, targets] : by_rule) {
      ASSIGN_OR_RETURN(const int32_t to, id_of(std::move(targets)));
      calls.emplace_back(rule, to);
    }
  }
  return dfa;
}

absl::StatusOr<Dfa> DfaBuilder::Build(ExprId expr) {
  ASSIGN_OR_RETURN(const int32_t accept, AddState({.kind = NfaState::Kind::kAccept}));
  ASSIGN_OR_RETURN(const int32_t start, Emit(expr, accept));
  return Determinise(start);
}

}  // namespace ferry::constraint
