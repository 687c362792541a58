#include "gateway/template/expression_parser.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>

#include "absl/strings/numbers.h"
#include "gateway/template/budget.h"
#include "gateway/template/known_names.h"
#include "gateway/template/parser.h"

namespace ferry::jinja {

absl::Status TokenStream::ExpectName(std::string_view name) {
  if (TakeName(name)) return absl::OkStatus();
  return Unexpected(absl::StrFormat("'%s'", name));
}

absl::Status TokenStream::Unexpected(std::string_view wanted) const {
  const Token& token = current();
  const auto shown = [&]() -> std::string {
    switch (token.kind) {
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kOutputEnd:
        return "'}}'";
      case TokenKind::kBlockEnd:
        return "'%}'";
      case TokenKind::kString:
        return "a string";
      default:
        return "'" + token.text + "'";
    }
  };
  return InvalidArgument("line %d: %s where %s is wanted", token.line, shown(), wanted);
}

ExpressionParser::Draft ExpressionParser::New(ExpressionKind kind, std::string name) const {
  auto draft = std::make_unique<Expression>();
  draft->kind = kind;
  draft->line = tokens_.current().line;
  draft->name = std::move(name);
  return draft;
}

ExpressionParser::Result ExpressionParser::Finish(Draft draft) const {
  for (const ExpressionPtr& child : draft->children) {
    if (child != nullptr) draft->depth = std::max(draft->depth, child->depth + 1);
  }
  for (const auto& [name, value] : draft->keywords) draft->depth = std::max(draft->depth, value->depth + 1);
  if (draft->depth > kMaxTreeDepth) {
    return InvalidArgument("line %d: the expression has more than %d levels", draft->line, kMaxTreeDepth);
  }
  return ExpressionPtr(std::move(draft));
}

ExpressionParser::Result ExpressionParser::Parse(bool with_condition) {
  const DepthGuard guard(&depth_);
  if (depth_ > kMaxTreeDepth) {
    return InvalidArgument("line %d: the expression has more than %d levels", tokens_.current().line, kMaxTreeDepth);
  }
  return with_condition ? ParseCondition() : ParseBinary(0);
}

ExpressionParser::Result ExpressionParser::ParseTuple(bool with_condition) {
  ASSIGN_OR_RETURN(ExpressionPtr first, Parse(with_condition));
  if (!tokens_.AtOperator(",")) return first;
  Draft tuple = New(ExpressionKind::kTuple);
  tuple->children.push_back(std::move(first));
  while (tokens_.TakeOperator(",")) {
    const Token& token = tokens_.current();
    const bool ends = token.kind == TokenKind::kOutputEnd || token.kind == TokenKind::kBlockEnd || tokens_.AtOperator(")");
    if (ends) break;
    ASSIGN_OR_RETURN(ExpressionPtr element, Parse(with_condition));
    tuple->children.push_back(std::move(element));
  }
  return Finish(std::move(tuple));
}

ExpressionParser::Result ExpressionParser::ParseCondition() {
  ASSIGN_OR_RETURN(ExpressionPtr value, ParseBinary(0));
  while (tokens_.AtName("if")) {
    Draft draft = New(ExpressionKind::kCondition);
    tokens_.Skip();
    draft->children.push_back(std::move(value));
    ASSIGN_OR_RETURN(ExpressionPtr condition, ParseBinary(0));
    draft->children.push_back(std::move(condition));
    draft->children.push_back(nullptr);
    if (tokens_.TakeName("else")) {
      ASSIGN_OR_RETURN(draft->children.back(), Parse(/*with_condition=*/true));
    }
    ASSIGN_OR_RETURN(value, Finish(std::move(draft)));
  }
  return value;
}

// The levels of operators that take two operands, weakest first. `not`, comparisons and ~ lie between them.
ExpressionParser::Result ExpressionParser::ParseBinary(size_t level) {
  struct Level {
    std::array<std::string_view, 4> operators;
    bool words;
    Result (ExpressionParser::*operand)();
  };
  static constexpr size_t kLevels = 4;
  static const std::array<Level, kLevels> levels = {{
      {{"or"}, true, nullptr},
      {{"and"}, true, &ExpressionParser::ParseNot},
      {{"+", "-"}, false, &ExpressionParser::ParseConcat},
      {{"*", "/", "//", "%"}, false, &ExpressionParser::ParsePower},
  }};
  const auto operand = [&]() { return level == 0 ? ParseBinary(1) : (this->*levels[level].operand)(); };
  ASSIGN_OR_RETURN(ExpressionPtr left, operand());
  while (true) {
    const Token& token = tokens_.current();
    const auto& operators = levels[level].operators;
    if (token.kind != (levels[level].words ? TokenKind::kName : TokenKind::kOperator)) return left;
    if (std::find(operators.begin(), operators.end(), token.text) == operators.end()) return left;
    Draft draft = New(ExpressionKind::kBinary, token.text);
    tokens_.Skip();
    draft->children.push_back(std::move(left));
    ASSIGN_OR_RETURN(ExpressionPtr right, operand());
    draft->children.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Finish(std::move(draft)));
  }
}

ExpressionParser::Result ExpressionParser::ParseNot() {
  if (!tokens_.AtName("not")) return ParseCompare();
  const DepthGuard guard(&depth_);
  Draft draft = New(ExpressionKind::kUnary, "not");
  if (depth_ > kMaxTreeDepth) {
    return InvalidArgument("line %d: the expression has more than %d levels", draft->line, kMaxTreeDepth);
  }
  tokens_.Skip();
  ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
  draft->children.push_back(std::move(operand));
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParseCompare() {
  constexpr size_t kSum = 2;  // the level of + and -
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseBinary(kSum));
  Draft draft = New(ExpressionKind::kCompare);
  const auto take_operator = [&]() -> bool {
    for (const std::string_view op : {"==", "!=", "<", "<=", ">", ">="}) {
      if (!tokens_.AtOperator(op)) continue;
      draft->names.emplace_back(op);
      tokens_.Skip();
      return true;
    }
    const bool negated = tokens_.AtName("not") && tokens_.next().kind == TokenKind::kName && tokens_.next().text == "in";
    if (negated) tokens_.Skip();
    if (!tokens_.TakeName("in")) return false;
    draft->names.emplace_back(negated ? "not in" : "in");
    return true;
  };
  if (!take_operator()) return first;
  draft->children.push_back(std::move(first));
  do {
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseBinary(kSum));
    draft->children.push_back(std::move(operand));
  } while (take_operator());
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParseConcat() {
  constexpr size_t kProduct = 3;  // the level of * and /
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseBinary(kProduct));
  if (!tokens_.AtOperator("~")) return first;
  Draft draft = New(ExpressionKind::kConcat);
  draft->children.push_back(std::move(first));
  while (tokens_.TakeOperator("~")) {
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseBinary(kProduct));
    draft->children.push_back(std::move(operand));
  }
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParsePower() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseUnary(/*with_filters=*/true));
  while (tokens_.AtOperator("**")) {
    Draft draft = New(ExpressionKind::kBinary, "**");
    tokens_.Skip();
    draft->children.push_back(std::move(left));
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseUnary(/*with_filters=*/true));
    draft->children.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Finish(std::move(draft)));
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseUnary(bool with_filters) {
  const DepthGuard guard(&depth_);
  if (depth_ > kMaxTreeDepth) {
    return InvalidArgument("line %d: the expression has more than %d levels", tokens_.current().line, kMaxTreeDepth);
  }
  ExpressionPtr expression;
  if (tokens_.AtOperator("-") || tokens_.AtOperator("+")) {
    Draft draft = New(ExpressionKind::kUnary, tokens_.current().text);
    tokens_.Skip();
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseUnary(/*with_filters=*/false));
    draft->children.push_back(std::move(operand));
    ASSIGN_OR_RETURN(expression, Finish(std::move(draft)));
  } else {
    ASSIGN_OR_RETURN(expression, ParsePrimary());
  }
  ASSIGN_OR_RETURN(expression, ParsePostfix(std::move(expression)));
  return with_filters ? ParseFilters(std::move(expression)) : Result(std::move(expression));
}

ExpressionParser::Result ExpressionParser::ParsePrimary() {
  const Token& token = tokens_.current();
  switch (token.kind) {
    case TokenKind::kName:
    case TokenKind::kString:
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return ParseLiteral();
    default:
      return ParseBrackets();
  }
}

ExpressionParser::Result ExpressionParser::ParseLiteral() {
  Draft draft = New(ExpressionKind::kLiteral);
  const Token token = tokens_.Take();
  if (token.kind == TokenKind::kString) {
    std::string text = token.text;
    while (tokens_.current().kind == TokenKind::kString) text += tokens_.Take().text;
    draft->literal = std::move(text);
  } else if (token.kind == TokenKind::kInteger) {
    int64_t number;
    if (!absl::SimpleAtoi(token.text, &number)) return InvalidArgument("line %d: %s is too large", token.line, token.text);
    draft->literal = number;
  } else if (token.kind == TokenKind::kFloat) {
    draft->literal = std::strtod(token.text.c_str(), nullptr);
  } else if (token.text == "true" || token.text == "True") {
    draft->literal = true;
  } else if (token.text == "false" || token.text == "False") {
    draft->literal = false;
  } else if (token.text != "none" && token.text != "None") {
    draft->kind = ExpressionKind::kName;
    draft->name = token.text;
  }
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParseBrackets() {
  if (tokens_.AtOperator("{")) return ParseDict();
  if (tokens_.AtOperator("(")) {
    Draft empty = New(ExpressionKind::kTuple);
    tokens_.Skip();
    if (tokens_.TakeOperator(")")) return Finish(std::move(empty));
    ASSIGN_OR_RETURN(ExpressionPtr inner, ParseTuple(/*with_condition=*/true));
    if (!tokens_.TakeOperator(")")) return tokens_.Unexpected("')'");
    return inner;
  }
  Draft list = New(ExpressionKind::kList);
  if (!tokens_.TakeOperator("[")) return tokens_.Unexpected("an expression");
  while (!tokens_.TakeOperator("]")) {
    ASSIGN_OR_RETURN(ExpressionPtr element, Parse(/*with_condition=*/true));
    list->children.push_back(std::move(element));
    if (!tokens_.TakeOperator(",") && !tokens_.AtOperator("]")) return tokens_.Unexpected("',' or ']'");
  }
  return Finish(std::move(list));
}

ExpressionParser::Result ExpressionParser::ParseDict() {
  Draft dict = New(ExpressionKind::kDict);
  tokens_.Skip();
  while (!tokens_.TakeOperator("}")) {
    ASSIGN_OR_RETURN(ExpressionPtr key, Parse(/*with_condition=*/true));
    if (!tokens_.TakeOperator(":")) return tokens_.Unexpected("':'");
    ASSIGN_OR_RETURN(ExpressionPtr value, Parse(/*with_condition=*/true));
    dict->children.push_back(std::move(key));
    dict->children.push_back(std::move(value));
    if (!tokens_.TakeOperator(",") && !tokens_.AtOperator("}")) return tokens_.Unexpected("',' or '}'");
  }
  return Finish(std::move(dict));
}

ExpressionParser::Result ExpressionParser::ParsePostfix(ExpressionPtr expression) {
  while (true) {
    if (tokens_.AtOperator(".")) {
      ASSIGN_OR_RETURN(expression, ParseAttribute(std::move(expression)));
    } else if (tokens_.AtOperator("[")) {
      ASSIGN_OR_RETURN(expression, ParseSubscript(std::move(expression)));
    } else if (tokens_.AtOperator("(")) {
      ASSIGN_OR_RETURN(expression, ParseCall(std::move(expression)));
    } else {
      return expression;
    }
  }
}

ExpressionParser::Result ExpressionParser::ParseAttribute(ExpressionPtr object) {
  Draft draft = New(ExpressionKind::kAttribute);
  draft->children.push_back(std::move(object));
  tokens_.Skip();
  const Token token = tokens_.Take();
  if (token.kind == TokenKind::kName) {
    draft->name = token.text;
  } else if (int64_t number; token.kind == TokenKind::kInteger && absl::SimpleAtoi(token.text, &number)) {
    draft->kind = ExpressionKind::kSubscript;
    Draft index = New(ExpressionKind::kLiteral);
    index->literal = number;
    draft->children.push_back(std::move(index));
  } else {
    return InvalidArgument("line %d: a name or number is wanted behind '.'", token.line);
  }
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParseSubscript(ExpressionPtr object) {
  Draft draft = New(ExpressionKind::kSubscript);
  draft->children.push_back(std::move(object));
  tokens_.Skip();
  while (true) {
    ExpressionPtr part;
    if (!tokens_.AtOperator(":") && !tokens_.AtOperator("]")) {
      ASSIGN_OR_RETURN(part, Parse(/*with_condition=*/true));
    }
    draft->children.push_back(std::move(part));
    if (!tokens_.AtOperator(":") || draft->children.size() == 4) break;
    draft->kind = ExpressionKind::kSlice;
    tokens_.Skip();
  }
  if (!tokens_.AtOperator("]") || (draft->kind == ExpressionKind::kSubscript && draft->children[1] == nullptr)) {
    return tokens_.Unexpected(tokens_.AtOperator("]") ? "an index" : "']'");
  }
  tokens_.Skip();
  if (draft->kind == ExpressionKind::kSlice) draft->children.resize(4);
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParseCall(ExpressionPtr callee) {
  Draft draft = New(ExpressionKind::kCall);
  draft->children.push_back(std::move(callee));
  tokens_.Skip();
  RETURN_IF_ERROR(ParseArguments(draft.get()));
  return Finish(std::move(draft));
}

absl::Status ExpressionParser::ParseArguments(Expression* draft) {
  while (!tokens_.TakeOperator(")")) {
    if (tokens_.current().kind == TokenKind::kName && tokens_.next().kind == TokenKind::kOperator && tokens_.next().text == "=") {
      std::string name = tokens_.Take().text;
      tokens_.Skip();
      ASSIGN_OR_RETURN(ExpressionPtr value, Parse(/*with_condition=*/true));
      draft->keywords.emplace_back(std::move(name), std::move(value));
    } else {
      if (!draft->keywords.empty()) return tokens_.Unexpected("an argument with a name");
      ASSIGN_OR_RETURN(ExpressionPtr value, Parse(/*with_condition=*/true));
      draft->children.push_back(std::move(value));
    }
    if (!tokens_.TakeOperator(",") && !tokens_.AtOperator(")")) return tokens_.Unexpected("',' or ')'");
  }
  return absl::OkStatus();
}

ExpressionParser::Result ExpressionParser::ParseFilters(ExpressionPtr expression) {
  while (true) {
    if (tokens_.TakeOperator("|")) {
      ASSIGN_OR_RETURN(expression, ParseFilter(std::move(expression)));
    } else if (tokens_.TakeName("is")) {
      ASSIGN_OR_RETURN(expression, ParseTest(std::move(expression)));
    } else if (tokens_.AtOperator("(")) {
      ASSIGN_OR_RETURN(expression, ParseCall(std::move(expression)));
    } else {
      return expression;
    }
  }
}

ExpressionParser::Result ExpressionParser::ParseFilter(ExpressionPtr operand) {
  Draft draft = New(ExpressionKind::kFilter);
  if (tokens_.current().kind != TokenKind::kName) return tokens_.Unexpected("a filter's name");
  draft->name = tokens_.Take().text;
  if (!IsFilter(draft->name)) return InvalidArgument("line %d: there is no filter '%s'", draft->line, draft->name);
  draft->children.push_back(std::move(operand));
  if (tokens_.TakeOperator("(")) RETURN_IF_ERROR(ParseArguments(draft.get()));
  return Finish(std::move(draft));
}

ExpressionParser::Result ExpressionParser::ParseTest(ExpressionPtr operand) {
  Draft draft = New(ExpressionKind::kTest);
  const bool negated = tokens_.TakeName("not");
  if (tokens_.current().kind != TokenKind::kName) return tokens_.Unexpected("a test's name");
  draft->name = tokens_.Take().text;
  if (!IsTest(draft->name)) return InvalidArgument("line %d: there is no test '%s'", draft->line, draft->name);
  draft->children.push_back(std::move(operand));
  const Token& token = tokens_.current();
  if (tokens_.TakeOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(draft.get()));
  } else if (token.kind == TokenKind::kString || token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat ||
             tokens_.AtOperator("[") || tokens_.AtOperator("{") ||
             (token.kind == TokenKind::kName && TestTakesAnOperand(draft->name))) {
    ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    draft->children.push_back(std::move(argument));
  }
  if (!negated) return Finish(std::move(draft));
  Draft inverse = New(ExpressionKind::kUnary, "not");
  ASSIGN_OR_RETURN(ExpressionPtr test, Finish(std::move(draft)));
  inverse->children.push_back(std::move(test));
  return Finish(std::move(inverse));
}

}  // namespace ferry::jinja
