#include "gateway/template/evaluator.h"

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "gateway/template/operators.h"
#include "gateway/template/python_text.h"

namespace ferry::jinja {
namespace {

// The message with the line in front, unless one is there.
absl::Status AtLine(const absl::Status& status, int line) {
  if (status.ok() || absl::StartsWith(status.message(), "line ")) return status;
  return Annotate(status, absl::StrFormat("line %d", line));
}

// An undefined value by its name in the template, where an operation does not take it.
absl::Status CheckDefined(const Value& value, const Expression& expression) {
  if (!value.IsUndefined()) return absl::OkStatus();
  const bool named = expression.kind == ExpressionKind::kName || expression.kind == ExpressionKind::kAttribute;
  return InvalidArgument("'%s' is undefined", named ? expression.name : "a value");
}

}  // namespace

absl::StatusOr<MarkedString> Evaluator::Run(const Block& body, Scope* globals) {
  scope_ = globals;
  return Capture(body);
}

absl::StatusOr<MarkedString> Evaluator::Capture(const Block& block) {
  MarkedString text;
  MarkedString* const outer = std::exchange(out_, &text);
  const absl::Status status = Execute(block);
  out_ = outer;
  heap_.budget().Give(text.size());
  RETURN_IF_ERROR(status);
  return text;
}

absl::Status Evaluator::Write(const MarkedString& text) {
  Budget& budget = heap_.budget();
  RETURN_IF_ERROR(budget.CheckString(out_->size() + text.size()));
  RETURN_IF_ERROR(budget.StepBytes(text.size()));
  RETURN_IF_ERROR(budget.Take(text.size()));  // Capture gives it back
  out_->Append(text);
  return absl::OkStatus();
}

absl::Status Evaluator::Execute(const Block& block) {
  const DepthGuard guard(&depth_);
  if (depth_ > heap_.budget().limits().depth) {
    return ResourceExhausted("the template nests more than %d levels", heap_.budget().limits().depth);
  }
  for (const std::unique_ptr<const Statement>& statement : block) {
    RETURN_IF_ERROR(heap_.budget().Step());
    RETURN_IF_ERROR(AtLine(Execute(*statement), statement->line));
  }
  return absl::OkStatus();
}

absl::Status Evaluator::Execute(const Statement& statement) {
  switch (statement.kind) {
    case StatementKind::kText:
      return Write(MarkedString(statement.text));
    case StatementKind::kOutput: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
      ASSIGN_OR_RETURN(const MarkedString text, ToText(value, &heap_.budget()));
      return Write(text);
    }
    case StatementKind::kIf:
      return ExecuteIf(statement);
    case StatementKind::kFor:
      return ExecuteFor(statement);
    case StatementKind::kSet:
      return ExecuteSet(statement);
    case StatementKind::kMacro: {
      for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) scope->captured = true;
      ASSIGN_OR_RETURN(
          Value macro,
          heap_.NewCallable(
              {.kind = Callable::Kind::kMacro, .name = statement.name, .self = Value(), .macro = &statement, .scope = scope_}));
      return heap_.SetVariable(scope_, statement.name, std::move(macro));
    }
    case StatementKind::kGeneration:
      return Execute(statement.body);
  }
  return Internal("a statement of a kind that is not known");
}

absl::Status Evaluator::ExecuteIf(const Statement& statement) {
  for (const Statement::Branch& branch : statement.branches) {
    if (branch.condition != nullptr) {
      ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition));
      if (!condition.Truth()) continue;
    }
    return Execute(branch.body);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Evaluator::LoopTakes(const Statement& statement, const Value& item) {
  if (statement.condition == nullptr) return true;
  Scope* const outer = scope_;
  ASSIGN_OR_RETURN(scope_, heap_.NewScope(outer));
  const auto restore = absl::MakeCleanup([&] { heap_.EndScope(std::exchange(scope_, outer)); });
  RETURN_IF_ERROR(Assign(statement.target, item));
  ASSIGN_OR_RETURN(const Value condition, Evaluate(*statement.condition));
  return condition.Truth();
}

absl::Status Evaluator::ExecuteFor(const Statement& statement) {
  ASSIGN_OR_RETURN(const Value iterable, Evaluate(*statement.expression));
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(heap_, iterable));
  if (statement.condition != nullptr) {
    std::vector<Value> taken;
    for (Value& item : items) {
      ASSIGN_OR_RETURN(const bool takes, LoopTakes(statement, item));
      if (takes) taken.push_back(std::move(item));
    }
    items = std::move(taken);
  }
  if (items.empty()) return Execute(statement.otherwise);
  const size_t bytes = items.size() * sizeof(Value);
  RETURN_IF_ERROR(heap_.budget().Take(bytes));
  const absl::Status status = ExecuteLoopBody(statement, items);
  heap_.budget().Give(bytes);
  return status;
}

absl::Status Evaluator::ExecuteLoopBody(const Statement& statement, const std::vector<Value>& items) {
  Loop loop{&items, 0};
  Scope* const outer = scope_;
  for (; loop.index < items.size(); ++loop.index) {
    ASSIGN_OR_RETURN(scope_, heap_.NewScope(outer));
    const auto restore = absl::MakeCleanup([&] {
      // A macro that was defined here may be called later, and the loop will be gone.
      scope_->variables.erase("loop");
      heap_.EndScope(std::exchange(scope_, outer));
    });
    RETURN_IF_ERROR(heap_.SetVariable(scope_, "loop", Value(&std::as_const(loop))));
    RETURN_IF_ERROR(Assign(statement.target, items[loop.index]));
    RETURN_IF_ERROR(Execute(statement.body));
  }
  return absl::OkStatus();
}

absl::Status Evaluator::ExecuteSet(const Statement& statement) {
  if (statement.expression != nullptr) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
    return Assign(statement.target, value);
  }
  ASSIGN_OR_RETURN(MarkedString text, Capture(statement.body));
  ASSIGN_OR_RETURN(const Value value, heap_.String(std::move(text)));
  return Assign(statement.target, value);
}

absl::Status Evaluator::Assign(const Target& target, const Value& value) {
  if (!target.attribute.empty()) {
    ASSIGN_OR_RETURN(const Value object, EvaluateName(target.names[0]));
    if (object.dict() == nullptr || !object.dict()->is_namespace()) {
      return InvalidArgument("'%s' is a %s, and only attributes of a namespace can be set", target.names[0], object.TypeName());
    }
    return heap_.Set(object.dict(), target.attribute, value);
  }
  if (!target.unpack) return heap_.SetVariable(scope_, target.names[0], value);
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(heap_, value));
  if (items.size() != target.names.size()) {
    return InvalidArgument("%d values are unpacked into %d names", items.size(), target.names.size());
  }
  for (size_t i = 0; i < items.size(); ++i) RETURN_IF_ERROR(heap_.SetVariable(scope_, target.names[i], items[i]));
  return absl::OkStatus();
}

absl::StatusOr<Value> Evaluator::Evaluate(const Expression& expression) {
  const DepthGuard guard(&depth_);
  if (depth_ > heap_.budget().limits().depth) {
    return ResourceExhausted("line %d: the template nests more than %d levels", expression.line, heap_.budget().limits().depth);
  }
  RETURN_IF_ERROR(heap_.budget().Step());
  absl::StatusOr<Value> value = EvaluateHere(expression);
  if (!value.ok()) return AtLine(value.status(), expression.line);
  return value;
}

absl::StatusOr<Value> Evaluator::EvaluateHere(const Expression& expression) {
  switch (expression.kind) {
    case ExpressionKind::kLiteral:
      return EvaluateLiteral(expression);
    case ExpressionKind::kName:
      return EvaluateName(expression.name);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: {
      ASSIGN_OR_RETURN(std::vector<Value> items, EvaluateChildren(expression, 0));
      return heap_.NewList(std::move(items), expression.kind == ExpressionKind::kTuple);
    }
    case ExpressionKind::kDict:
      return EvaluateDict(expression);
    case ExpressionKind::kUnary:
      return EvaluateUnary(expression);
    case ExpressionKind::kBinary:
      return EvaluateBinary(expression);
    case ExpressionKind::kConcat:
      return EvaluateConcat(expression);
    case ExpressionKind::kCompare:
      return EvaluateCompare(expression);
    case ExpressionKind::kCondition:
      return EvaluateCondition(expression);
    case ExpressionKind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*expression.children[0]));
      RETURN_IF_ERROR(CheckDefined(object, *expression.children[0]));
      return Attribute(heap_, object, expression.name);
    }
    case ExpressionKind::kSubscript: {
      ASSIGN_OR_RETURN(const Value container, Evaluate(*expression.children[0]));
      RETURN_IF_ERROR(CheckDefined(container, *expression.children[0]));
      ASSIGN_OR_RETURN(const Value key, Evaluate(*expression.children[1]));
      return Subscript(heap_, container, key);
    }
    case ExpressionKind::kSlice:
      return EvaluateSlice(expression);
    case ExpressionKind::kCall:
      return EvaluateCall(expression);
    case ExpressionKind::kFilter:
      return EvaluateFilter(expression);
    case ExpressionKind::kTest:
      return EvaluateTest(expression);
  }
  return Internal("an expression of a kind that is not known");
}

absl::StatusOr<Value> Evaluator::EvaluateLiteral(const Expression& expression) {
  const Literal& literal = expression.literal;
  if (const bool* truth = std::get_if<bool>(&literal)) return Value(*truth);
  if (const int64_t* number = std::get_if<int64_t>(&literal)) return Value(*number);
  if (const double* number = std::get_if<double>(&literal)) return Value(*number);
  if (const std::string* text = std::get_if<std::string>(&literal)) return heap_.String(*text);
  return Value(None());
}

absl::StatusOr<Value> Evaluator::EvaluateName(const std::string& name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto found = scope->variables.find(name);
    if (found != scope->variables.end()) return found->second;
  }
  if (!IsFunction(name)) return Value();
  return heap_.NewCallable({.kind = Callable::Kind::kFunction, .name = name, .self = Value()});
}

absl::StatusOr<std::vector<Value>> Evaluator::EvaluateChildren(const Expression& expression, size_t first) {
  std::vector<Value> values;
  for (size_t i = first; i < expression.children.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression.children[i]));
    values.push_back(std::move(value));
  }
  return values;
}

absl::StatusOr<Value> Evaluator::EvaluateDict(const Expression& expression) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, EvaluateChildren(expression, 0));
  ASSIGN_OR_RETURN(const Value dict, heap_.NewDict());
  for (size_t i = 0; i < values.size(); i += 2) RETURN_IF_ERROR(heap_.Set(dict.dict(), values[i], values[i + 1]));
  return dict;
}

absl::StatusOr<Value> Evaluator::EvaluateUnary(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value operand, Evaluate(*expression.children[0]));
  if (expression.name == "not") return Value(!operand.Truth());
  RETURN_IF_ERROR(CheckDefined(operand, *expression.children[0]));
  if (expression.name == "-") return Negative(operand);
  if (!operand.IsNumber()) return InvalidArgument("'+' does not take a %s", operand.TypeName());
  return operand.Is<bool>() ? Value(operand.integer()) : operand;
}

absl::StatusOr<Value> Evaluator::EvaluateBinary(const Expression& expression) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expression.children[0]));
  if (expression.name == "and" || expression.name == "or") {
    if (left.Truth() == (expression.name == "or")) return left;
    return Evaluate(*expression.children[1]);
  }
  ASSIGN_OR_RETURN(const Value right, Evaluate(*expression.children[1]));
  RETURN_IF_ERROR(CheckDefined(left, *expression.children[0]));
  RETURN_IF_ERROR(CheckDefined(right, *expression.children[1]));
  return Arithmetic(heap_, expression.name, left, right);
}

absl::StatusOr<Value> Evaluator::EvaluateConcat(const Expression& expression) {
  MarkedString text;
  for (const ExpressionPtr& child : expression.children) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*child));
    ASSIGN_OR_RETURN(const MarkedString part, ToText(value, &heap_.budget()));
    RETURN_IF_ERROR(heap_.budget().CheckString(text.size() + part.size()));
    text.Append(part);
  }
  return heap_.String(std::move(text));
}

absl::StatusOr<Value> Evaluator::EvaluateCompare(const Expression& expression) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expression.children[0]));
  for (size_t i = 0; i < expression.names.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*expression.children[i + 1]));
    const std::string& op = expression.names[i];
    bool holds;
    if (op == "==" || op == "!=") {
      ASSIGN_OR_RETURN(holds, Equal(left, right, &heap_.budget()));
      holds = holds == (op == "==");
    } else if (op == "in" || op == "not in") {
      ASSIGN_OR_RETURN(holds, Contains(right, left, &heap_.budget()));
      holds = holds == (op == "in");
    } else {
      ASSIGN_OR_RETURN(const int order, Order(left, right, &heap_.budget()));
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

absl::StatusOr<Value> Evaluator::EvaluateCondition(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value condition, Evaluate(*expression.children[1]));
  if (condition.Truth()) return Evaluate(*expression.children[0]);
  return expression.children[2] == nullptr ? Value() : Evaluate(*expression.children[2]);
}

absl::StatusOr<Value> Evaluator::EvaluateSlice(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value container, Evaluate(*expression.children[0]));
  RETURN_IF_ERROR(CheckDefined(container, *expression.children[0]));
  Value bounds[3] = {None(), None(), None()};
  for (size_t i = 0; i < 3; ++i) {
    if (expression.children[i + 1] == nullptr) continue;
    ASSIGN_OR_RETURN(bounds[i], Evaluate(*expression.children[i + 1]));
  }
  return Slice(heap_, container, bounds[0], bounds[1], bounds[2]);
}

absl::StatusOr<Arguments> Evaluator::EvaluateArguments(const Expression& expression) {
  ASSIGN_OR_RETURN(std::vector<Value> positional, EvaluateChildren(expression, 1));
  std::vector<std::pair<std::string, Value>> keywords;
  for (const auto& [name, argument] : expression.keywords) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*argument));
    keywords.emplace_back(name, std::move(value));
  }
  return Arguments(std::move(positional), std::move(keywords));
}

absl::StatusOr<Value> Evaluator::EvaluateCall(const Expression& expression) {
  const Expression& callee = *expression.children[0];
  ASSIGN_OR_RETURN(const Value function, Evaluate(callee));
  RETURN_IF_ERROR(CheckDefined(function, callee));
  if (!function.Is<Callable*>()) return InvalidArgument("a %s cannot be called", function.TypeName());
  const Callable& callable = *function.As<Callable*>();
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expression));
  absl::StatusOr<Value> result;
  switch (callable.kind) {
    case Callable::Kind::kMacro:
      result = CallMacro(callable, arguments);
      break;
    case Callable::Kind::kFunction:
      result = CallFunction(context_, callable.name, arguments);
      break;
    case Callable::Kind::kMethod:
      result = CallMethod(context_, callable.self, callable.name, arguments);
      break;
  }
  RETURN_IF_ERROR(result.status());
  RETURN_IF_ERROR(Annotate(arguments.CheckAllUsed(), callable.name));
  return result;
}

absl::StatusOr<Value> Evaluator::CallMacro(const Callable& macro, Arguments& arguments) {
  Scope* const caller = scope_;
  ASSIGN_OR_RETURN(scope_, heap_.NewScope(macro.scope));
  const auto restore = absl::MakeCleanup([&] { heap_.EndScope(std::exchange(scope_, caller)); });
  const std::vector<Parameter>& parameters = macro.macro->parameters;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Value* given = arguments.Get(i, parameters[i].name);
    Value value;
    if (given != nullptr) {
      value = *given;
    } else if (parameters[i].default_value != nullptr) {
      ASSIGN_OR_RETURN(value, Evaluate(*parameters[i].default_value));
    }
    RETURN_IF_ERROR(heap_.SetVariable(scope_, parameters[i].name, std::move(value)));
  }
  ASSIGN_OR_RETURN(MarkedString text, Capture(macro.macro->body));
  return heap_.String(std::move(text));
}

absl::StatusOr<Value> Evaluator::EvaluateFilter(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*expression.children[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expression));
  absl::StatusOr<Value> result = ApplyFilter(context_, expression.name, value, arguments);
  RETURN_IF_ERROR(Annotate(result.status(), expression.name));
  RETURN_IF_ERROR(Annotate(arguments.CheckAllUsed(), expression.name));
  return result;
}

absl::StatusOr<Value> Evaluator::EvaluateTest(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*expression.children[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expression));
  ASSIGN_OR_RETURN(const bool holds, ApplyTest(context_, expression.name, value, arguments));
  RETURN_IF_ERROR(Annotate(arguments.CheckAllUsed(), expression.name));
  return Value(holds);
}

}  // namespace ferry::jinja
