#include "coordinator/constraint/grammar.h"

#include <utility>

namespace ferry::constraint {

ExprId Grammar::Add(Expr expr) {
  exprs_.push_back(std::move(expr));
  return static_cast<ExprId>(exprs_.size() - 1);
}

ExprId Grammar::Empty() { return Add({}); }

ExprId Grammar::Bytes(const ByteSet& set) {
  byte_sets_.push_back(set);
  return Add({.kind = Expr::Kind::kBytes, .bytes = static_cast<int32_t>(byte_sets_.size() - 1), .parts = {}});
}

ExprId Grammar::Literal(std::string_view text) {
  std::vector<ExprId> parts;
  for (const char c : text) parts.push_back(Bytes(ByteSet().set(static_cast<uint8_t>(c))));
  return Concat(std::move(parts));
}

ExprId Grammar::Concat(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  if (parts.empty()) return Empty();
  return Add({.kind = Expr::Kind::kConcat, .parts = std::move(parts)});
}

ExprId Grammar::Alternate(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  return Add({.kind = Expr::Kind::kAlternate, .parts = std::move(parts)});
}

ExprId Grammar::Repeat(ExprId part, int32_t min, int32_t max) {
  return Add({.kind = Expr::Kind::kRepeat, .min = min, .max = max, .parts = {part}});
}

ExprId Grammar::Call(RuleId rule) { return Add({.kind = Expr::Kind::kCall, .rule = rule, .parts = {}}); }

ExprId Grammar::And(ExprId a, ExprId b) { return Add({.kind = Expr::Kind::kAnd, .parts = {a, b}}); }

ExprId Grammar::Minus(ExprId a, ExprId b) { return Add({.kind = Expr::Kind::kMinus, .parts = {a, b}}); }

RuleId Grammar::AddRule(std::string name) {
  rules_.push_back({.name = std::move(name), .expr = -1});
  return static_cast<RuleId>(rules_.size() - 1);
}

RuleId Grammar::Import(const Grammar& other) {
  const auto first_expr = static_cast<ExprId>(exprs_.size());
  const auto first_set = static_cast<int32_t>(byte_sets_.size());
  const auto first_rule = static_cast<RuleId>(rules_.size());
  byte_sets_.insert(byte_sets_.end(), other.byte_sets_.begin(), other.byte_sets_.end());
  for (Expr expr : other.exprs_) {
    if (expr.kind == Expr::Kind::kBytes) expr.bytes += first_set;
    if (expr.kind == Expr::Kind::kCall) expr.rule += first_rule;
    for (ExprId& part : expr.parts) part += first_expr;
    exprs_.push_back(std::move(expr));
  }
  for (const Rule& rule : other.rules_) rules_.push_back({.name = rule.name, .expr = rule.expr + first_expr});
  return other.root_ + first_rule;
}

}  // namespace ferry::constraint
