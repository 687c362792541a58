#pragma once

// The tokens of a template, and the expressions in them.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "gateway/template/ast.h"
#include "gateway/template/lexer.h"

namespace ferry::jinja {

class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& previous() const { return tokens_[at_ - 1]; }  // after a Skip or Take
  void Skip() {
    if (at_ + 1 < tokens_.size()) ++at_;  // kEnd stays
  }
  Token Take() {
    Token token = current();
    Skip();
    return token;
  }

  bool AtOperator(std::string_view op) const { return current().kind == TokenKind::kOperator && current().text == op; }
  bool AtName(std::string_view name) const { return current().kind == TokenKind::kName && current().text == name; }
  bool TakeOperator(std::string_view op) { return TakeIf(AtOperator(op)); }
  bool TakeName(std::string_view name) { return TakeIf(AtName(name)); }
  absl::Status ExpectName(std::string_view name);
  // InvalidArgument: the line, the current token, and `wanted` in its place.
  absl::Status Unexpected(std::string_view wanted) const;

 private:
  bool TakeIf(bool matches) {
    if (matches) Skip();
    return matches;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
};

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream* tokens) : tokens_(*tokens) {}  // must outlive this

  // One expression; `with_condition`: "a if b else c" is one.
  absl::StatusOr<ExpressionPtr> Parse(bool with_condition);
  // One expression, or several with commas between them, which are a tuple.
  absl::StatusOr<ExpressionPtr> ParseTuple(bool with_condition);

 private:
  using Result = absl::StatusOr<ExpressionPtr>;
  using Draft = std::unique_ptr<Expression>;

  Draft New(ExpressionKind kind, std::string name = "") const;
  // Takes the depth from the children. InvalidArgument beyond kMaxTreeDepth.
  Result Finish(Draft draft) const;

  Result ParseCondition();
  Result ParseBinary(size_t level);
  Result ParseNot();
  Result ParseCompare();
  Result ParseConcat();
  Result ParsePower();
  Result ParseUnary(bool with_filters);
  Result ParsePrimary();
  Result ParseLiteral();
  Result ParseBrackets();
  Result ParseDict();
  Result ParsePostfix(ExpressionPtr expression);
  Result ParseFilters(ExpressionPtr expression);
  Result ParseFilter(ExpressionPtr operand);
  Result ParseTest(ExpressionPtr operand);
  Result ParseAttribute(ExpressionPtr object);
  Result ParseSubscript(ExpressionPtr object);
  Result ParseCall(ExpressionPtr callee);
  absl::Status ParseArguments(Expression* draft);  // behind "("

  TokenStream& tokens_;
  int depth_ = 0;
};

}  // namespace ferry::jinja
