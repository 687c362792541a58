#include "coordinator/constraint/automaton.h"

#include <algorithm>
#include <utility>

#include "coordinator/constraint/byte_automata.h"

namespace ferry::constraint {
namespace {

constexpr size_t kMaxExpressions = 2'000'000;
constexpr size_t kMaxRules = 8'000;

bool IsNullable(const Grammar& grammar, ExprId id, const std::vector<bool>& rules) {
  const Expr& expr = grammar.expr(id);
  const auto nullable = [&](ExprId part) { return IsNullable(grammar, part, rules); };
  switch (expr.kind) {
    case Expr::Kind::kEmpty:
      return true;
    case Expr::Kind::kBytes:
      return false;
    case Expr::Kind::kConcat:
    case Expr::Kind::kAnd:
      return std::all_of(expr.parts.begin(), expr.parts.end(), nullable);
    case Expr::Kind::kAlternate:
      return std::any_of(expr.parts.begin(), expr.parts.end(), nullable);
    case Expr::Kind::kRepeat:
      return expr.min == 0 || nullable(expr.parts[0]);
    case Expr::Kind::kCall:
      return rules[expr.rule];
    case Expr::Kind::kMinus:
      return nullable(expr.parts[0]) && !nullable(expr.parts[1]);
  }
  return false;
}

// Which rules may be empty. Rules that are read anew are those whose answer may change.
std::vector<bool> NullableRules(const Grammar& grammar) {
  std::vector<bool> nullable(grammar.rules().size());
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t rule = 0; rule < nullable.size(); ++rule) {
      if (nullable[rule] || !IsNullable(grammar, grammar.rules()[rule].expr, nullable)) continue;
      nullable[rule] = true;
      changed = true;
    }
  }
  return nullable;
}

}  // namespace

class AutomatonBuilder {
 public:
  explicit AutomatonBuilder(const Grammar* grammar) : grammar_(*grammar) {}

  absl::StatusOr<Automaton> Build() {
    if (grammar_.exprs().size() > kMaxExpressions || grammar_.rules().size() > kMaxRules) {
      return InvalidArgument("the constraint is too large: it has %d rules and %d parts, want at most %d and %d",
                             grammar_.rules().size(), grammar_.exprs().size(), kMaxRules, kMaxExpressions);
    }
    const std::vector<bool> nullable = NullableRules(grammar_);
    const ByteClasses classes = ByteClasses::Of(grammar_);
    TakeClasses(classes);
    CompileBudget budget;
    for (const Grammar::Rule& rule : grammar_.rules()) {
      absl::StatusOr<Dfa> dfa = DfaBuilder(&grammar_, &classes, &nullable, &budget).Build(rule.expr);
      if (!dfa.ok()) return Annotate(dfa.status(), rule.name);
      Append(*dfa);
    }
    const Dfa end = {.next = std::vector<int32_t>(classes.size(), kDead), .accepting = {true}, .calls = {{}}};
    Append(end);
    result_.starts_.pop_back();
    result_.accepting_.back() = true;
    result_.root_ = grammar_.root();
    result_.accepts_empty_ = nullable[grammar_.root()];
    DropDeadSteps();
    RETURN_IF_ERROR(RankRules());
    return std::move(result_);
  }

 private:
  void TakeClasses(const ByteClasses& classes) {
    result_.class_of_ = classes.class_of;
    result_.byte_of_ = classes.byte_of;
    result_.num_classes_ = classes.size();
    result_.bytes_of_.assign(classes.size(), 0);
    for (const uint8_t c : classes.class_of) ++result_.bytes_of_[c];
  }

  void Append(const Dfa& dfa) {
    const StateId base = result_.num_states();
    result_.starts_.push_back(base);
    for (const int32_t to : dfa.next) result_.next_.push_back(to < 0 ? kDead : base + to);
    for (int32_t state = 0; state < dfa.size(); ++state) {
      result_.accepting_.push_back(state != 0 && dfa.accepting[state]);  // the empty text is the callers' business
      auto& calls = result_.calls_.emplace_back();
      for (const auto& [rule, then] : dfa.calls[state]) calls.push_back({rule, base + then});
    }
  }

  // Leaves only states from which the rule can end: whatever was read so far, there is a way to finish.
  void DropDeadSteps() {
    const int32_t num_states = result_.num_states();
    const int32_t num_classes = result_.num_classes_;
    // Backwards from accepting states; a call counts once its rule is known to have a text.
    std::vector<std::vector<StateId>> before(num_states);
    std::vector<std::vector<std::pair<StateId, StateId>>> callers(grammar_.rules().size());  // caller, state behind
    for (StateId state = 0; state < num_states; ++state) {
      const StateId* row = result_.Row(state);
      for (int32_t c = 0; c < num_classes; ++c) {
        if (row[c] != kDead && (c == 0 || row[c] != row[c - 1])) before[row[c]].push_back(state);
      }
      for (const Automaton::Call& call : result_.calls_[state]) callers[call.rule].emplace_back(state, call.then);
    }
    std::vector<bool> lives(num_states);
    std::vector<StateId> left;
    const auto revive = [&](StateId state) {
      if (lives[state]) return;
      lives[state] = true;
      left.push_back(state);
    };
    std::vector<RuleId> rule_of_start(num_states, -1);
    std::vector<std::vector<std::pair<RuleId, StateId>>> returns(num_states);  // state behind a call: rule, caller
    for (RuleId rule = 0; rule < static_cast<RuleId>(callers.size()); ++rule) {
      rule_of_start[result_.starts_[rule]] = rule;
      for (const auto& [caller, then] : callers[rule]) returns[then].emplace_back(rule, caller);
    }
    for (StateId state = 0; state < num_states; ++state) {
      if (result_.accepting_[state]) revive(state);
    }
    while (!left.empty()) {
      const StateId state = left.back();
      left.pop_back();
      for (const StateId from : before[state]) revive(from);
      for (const auto& [rule, caller] : returns[state]) {
        if (lives[result_.starts_[rule]]) revive(caller);
      }
      if (rule_of_start[state] < 0) continue;
      for (const auto& [caller, then] : callers[rule_of_start[state]]) {
        if (lives[then]) revive(caller);
      }
    }
    for (StateId& to : result_.next_) {
      if (to != kDead && !lives[to]) to = kDead;
    }
    result_.has_bytes_.assign(num_states, false);
    for (StateId state = 0; state < num_states; ++state) {
      const StateId* row = result_.Row(state);
      result_.has_bytes_[state] = std::any_of(row, row + num_classes, [](StateId to) { return to != kDead; });
      std::erase_if(result_.calls_[state],
                    [&](const Automaton::Call& call) { return !lives[call.then] || !lives[result_.starts_[call.rule]]; });
    }
    root_lives_ = lives[result_.starts_[grammar_.root()]];
  }

  // Callers before those whom they call before the first byte.
  absl::Status RankRules() {
    if (!root_lives_ && !result_.accepts_empty_) {
      return InvalidArgument("%s: no text satisfies it, or none that ends", grammar_.rules()[grammar_.root()].name);
    }
    const size_t num_rules = grammar_.rules().size();
    std::vector<int32_t> num_callers(num_rules);
    const auto called_first = [&](size_t rule) -> const std::vector<Automaton::Call>& {
      return result_.calls_[result_.starts_[rule]];
    };
    for (size_t rule = 0; rule < num_rules; ++rule) {
      for (const Automaton::Call& call : called_first(rule)) ++num_callers[call.rule];
    }
    std::vector<RuleId> order;
    for (size_t rule = 0; rule < num_rules; ++rule) {
      if (num_callers[rule] == 0) order.push_back(static_cast<RuleId>(rule));
    }
    result_.ranks_.assign(num_rules, -1);
    for (size_t i = 0; i < order.size(); ++i) {
      result_.ranks_[order[i]] = static_cast<int32_t>(i);
      for (const Automaton::Call& call : called_first(order[i])) {
        if (--num_callers[call.rule] == 0) order.push_back(call.rule);
      }
    }
    for (size_t rule = 0; rule < num_rules; ++rule) {
      if (result_.ranks_[rule] < 0) {
        return InvalidArgument("%s refers to itself, or to rules that do, with nothing in front (left recursion)",
                               grammar_.rules()[rule].name);
      }
    }
    return absl::OkStatus();
  }

  const Grammar& grammar_;
  Automaton result_;
  bool root_lives_ = false;
};

absl::StatusOr<Automaton> Automaton::Compile(const Grammar& grammar) { return AutomatonBuilder(&grammar).Build(); }

}  // namespace ferry::constraint
