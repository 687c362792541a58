// The tests of chat templates: the words that may follow "is".

#include <algorithm>
#include <array>

#include "gateway/template/context.h"
#include "gateway/template/known_names.h"
#include "gateway/template/operators.h"
#include "gateway/template/python_text.h"

namespace ferry::jinja {
namespace {

using Predicate = bool (*)(const Value&);

struct NamedPredicate {
  std::string_view name;
  Predicate holds;
};

bool IsMapping(const Value& value) { return value.dict() != nullptr && !value.dict()->is_namespace(); }
bool IsSequence(const Value& value) {
  return value.IsString() || value.list() != nullptr || IsMapping(value) || value.IsUndefined();
}

bool HasCase(const Value& value, char32_t (*to_case)(char32_t), char32_t (*other)(char32_t)) {
  if (!value.IsString()) return false;
  bool cased = false;
  for (size_t at = 0; at < value.text().size();) {
    const char32_t c = CharacterAt(value.text(), at);
    if (to_case(c) != c) return false;
    cased = cased || other(c) != c;
    at += c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  }
  return cased;
}

constexpr std::array<NamedPredicate, 17> kPredicates = {{
    {"defined", [](const Value& v) { return !v.IsUndefined(); }},
    {"undefined", [](const Value& v) { return v.IsUndefined(); }},
    {"none", [](const Value& v) { return v.IsNone(); }},
    {"string", [](const Value& v) { return v.IsString(); }},
    {"mapping", IsMapping},
    {"sequence", IsSequence},
    {"iterable", IsSequence},
    {"number", [](const Value& v) { return v.IsNumber(); }},
    {"integer", [](const Value& v) { return v.Is<int64_t>(); }},
    {"float", [](const Value& v) { return v.Is<double>(); }},
    {"boolean", [](const Value& v) { return v.Is<bool>(); }},
    {"true", [](const Value& v) { return v.Is<bool>() && v.As<bool>(); }},
    {"false", [](const Value& v) { return v.Is<bool>() && !v.As<bool>(); }},
    {"callable", [](const Value& v) { return v.Is<Callable*>(); }},
    {"lower", [](const Value& v) { return HasCase(v, ToLower, ToUpper); }},
    {"upper", [](const Value& v) { return HasCase(v, ToUpper, ToLower); }},
    {"escaped", [](const Value&) { return false; }},
}};

// Tests with an operand, and the one comparison that each is; "" for those with a rule of their own.
struct NamedComparison {
  std::string_view name, op;
};
constexpr std::array<NamedComparison, 18> kComparisons = {{
    {"==", "=="},
    {"eq", "=="},
    {"equalto", "=="},
    {"!=", "!="},
    {"ne", "!="},
    {"<", "<"},
    {"lt", "<"},
    {"lessthan", "<"},
    {"<=", "<="},
    {"le", "<="},
    {">", ">"},
    {"gt", ">"},
    {"greaterthan", ">"},
    {">=", ">="},
    {"ge", ">="},
    {"in", "in"},
    {"sameas", "sameas"},
    {"divisibleby", "divisibleby"},
}};

absl::StatusOr<bool> Compare(Context& context, std::string_view op, const Value& value, const Value& operand) {
  if (op == "in") return Contains(operand, value, &context.budget());
  if (op == "==" || op == "!=") {
    ASSIGN_OR_RETURN(const bool equal, Equal(value, operand, &context.budget()));
    return equal == (op == "==");
  }
  if (op == "sameas") {
    if (value.TypeName() != operand.TypeName()) return false;
    if (value.list() != nullptr || value.dict() != nullptr) {
      return value.list() == operand.list() && value.dict() == operand.dict();
    }
    return Equal(value, operand, &context.budget());
  }
  if (op == "divisibleby") {
    ASSIGN_OR_RETURN(const Value rest, Arithmetic(context.heap, "%", value, operand));
    return rest.IsNumber() && rest.number() == 0;
  }
  ASSIGN_OR_RETURN(const int order, Order(value, operand, &context.budget()));
  return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
}

absl::StatusOr<bool> IsOdd(const Value& value, bool odd) {
  if (!value.IsInteger()) return InvalidArgument("a %s is neither odd nor even", value.TypeName());
  return (value.integer() % 2 != 0) == odd;
}

}  // namespace

bool IsTest(std::string_view name) {
  return TestTakesAnOperand(name) || name == "odd" || name == "even" || name == "filter" || name == "test" ||
         std::any_of(kPredicates.begin(), kPredicates.end(), [&](const NamedPredicate& known) { return known.name == name; });
}

bool TestTakesAnOperand(std::string_view name) {
  return std::any_of(kComparisons.begin(), kComparisons.end(), [&](const NamedComparison& known) { return known.name == name; });
}

absl::StatusOr<bool> ApplyTest(Context& context, std::string_view name, const Value& value, Arguments& arguments) {
  for (const NamedPredicate& known : kPredicates) {
    if (known.name == name) return known.holds(value);
  }
  for (const NamedComparison& known : kComparisons) {
    if (known.name != name) continue;
    const Value* operand = arguments.Get(0);
    if (operand == nullptr) return InvalidArgument("the test '%s' needs an operand", name);
    return Compare(context, known.op, value, *operand);
  }
  if (name == "odd" || name == "even") return IsOdd(value, name == "odd");
  if (name == "filter") return value.IsString() && IsFilter(value.text());
  if (name == "test") return value.IsString() && IsTest(value.text());
  return InvalidArgument("there is no test '%s'", name);
}

}  // namespace ferry::jinja
