#pragma once

// What a constraint's front end (JSON schema, regex, GBNF) builds and the compiler reads: rules, each an expression over
// bytes and other rules. Expressions are numbers that belong to their grammar; one may be used in several places.

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::constraint {

using ByteSet = std::bitset<256>;
using ExprId = int32_t;
using RuleId = int32_t;

inline constexpr int32_t kUnbounded = -1;

struct Expr {
  enum class Kind { kEmpty, kBytes, kConcat, kAlternate, kRepeat, kCall, kAnd, kMinus };
  Kind kind = Kind::kEmpty;
  int32_t bytes = -1;         // kBytes: index into byte_sets()
  int32_t min = 0, max = 0;   // kRepeat; max may be kUnbounded
  RuleId rule = -1;           // kCall
  std::vector<ExprId> parts;  // what it is made of; two of them for kAnd and kMinus, one for kRepeat
};

// Copyable; one thread at a time.
class Grammar {
 public:
  ExprId Empty();                    // the empty text
  ExprId Bytes(const ByteSet& set);  // one byte of the set; an empty set matches nothing
  ExprId Literal(std::string_view text);
  ExprId Concat(std::vector<ExprId> parts);
  ExprId Alternate(std::vector<ExprId> parts);  // no parts: matches nothing
  ExprId Repeat(ExprId part, int32_t min, int32_t max);
  ExprId Optional(ExprId part) { return Repeat(part, 0, 1); }
  ExprId Call(RuleId rule);
  // Texts of both, and texts of the first that are not texts of the second. Neither part may contain a call.
  ExprId And(ExprId a, ExprId b);
  ExprId Minus(ExprId a, ExprId b);

  // Adds the rules of another grammar; its root's number here.
  RuleId Import(const Grammar& other);

  // `name` is how an error message calls the rule.
  RuleId AddRule(std::string name);
  void SetRule(RuleId rule, ExprId expr) { rules_[rule].expr = expr; }
  void SetRoot(RuleId rule) { root_ = rule; }

  struct Rule {
    std::string name;
    ExprId expr = -1;
  };
  const Expr& expr(ExprId id) const { return exprs_[id]; }
  const std::vector<Expr>& exprs() const { return exprs_; }
  const std::vector<ByteSet>& byte_sets() const { return byte_sets_; }
  const std::vector<Rule>& rules() const { return rules_; }
  RuleId root() const { return root_; }

 private:
  ExprId Add(Expr expr);

  std::vector<Expr> exprs_;
  std::vector<ByteSet> byte_sets_;
  std::vector<Rule> rules_;
  RuleId root_ = 0;
};

}  // namespace ferry::constraint
