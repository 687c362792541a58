#include "coordinator/constraint/json_terms.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/constraint/code_points.h"
#include "coordinator/constraint/regex.h"
#include "coordinator/constraint/token_trie.h"
#include "nlohmann/json.hpp"

namespace ferry::constraint {
namespace {

constexpr int32_t kBlock = 500;        // characters of one rule, in long strings
constexpr int64_t kLongString = 2000;  // above this many, characters are counted in blocks
constexpr int64_t kMaxBlocks = 1000;   // longer strings than 500,000 characters are not told apart from those

const CodePointSet& Unescaped() {
  static const auto& set = *new CodePointSet({{' ', '!'}, {'#', '['}, {']', kMaxCodePoint}});
  return set;
}

ExprId ByteOf(Grammar* grammar, std::string_view bytes) {
  ByteSet set;
  for (const char c : bytes) set.set(static_cast<uint8_t>(c));
  return grammar->Bytes(set);
}

// \uXXXX that is a character: surrogates come in pairs.
ExprId UnicodeEscape(Grammar* grammar) {
  const ExprId hex = ByteOf(grammar, "0123456789abcdefABCDEF");
  const ExprId d = ByteOf(grammar, "dD");
  const ExprId other = grammar->Alternate(
      {grammar->Concat({ByteOf(grammar, "0123456789abcefABCEF"), hex}), grammar->Concat({d, ByteOf(grammar, "01234567")})});
  const ExprId pair = grammar->Concat(
      {d, ByteOf(grammar, "89abAB"), hex, hex, grammar->Literal("\\u"), d, ByteOf(grammar, "cdefCDEF"), hex, hex});
  return grammar->Concat({grammar->Literal("\\u"), grammar->Alternate({grammar->Concat({other, hex, hex}), pair})});
}

}  // namespace

ExprId JsonTerms::Shared(const std::string& name, ExprId (JsonTerms::*make)()) {
  const auto it = rules_.find(name);
  if (it != rules_.end()) return grammar_.Call(it->second);
  const RuleId rule = grammar_.AddRule(name);
  rules_.emplace(name, rule);  // first: a value contains values
  grammar_.SetRule(rule, (this->*make)());
  return grammar_.Call(rule);
}

ExprId JsonTerms::Space() { return Shared("white space", &JsonTerms::MakeSpace); }
ExprId JsonTerms::Number() { return Shared("number", &JsonTerms::MakeNumber); }
ExprId JsonTerms::Integer() { return Shared("integer", &JsonTerms::MakeInteger); }
ExprId JsonTerms::String() { return Shared("string", &JsonTerms::MakeString); }
ExprId JsonTerms::AnyValue() { return Shared("value", &JsonTerms::MakeAnyValue); }
ExprId JsonTerms::AnyObject() { return Shared("object", &JsonTerms::MakeAnyObject); }

ExprId JsonTerms::Comma() { return grammar_.Concat({Space(), grammar_.Literal(","), Space()}); }

ExprId JsonTerms::MakeSpace() {
  const ExprId line = grammar_.Concat({grammar_.Literal("\n"), grammar_.Repeat(ByteOf(&grammar_, " \t"), 0, 40)});
  return grammar_.Alternate({grammar_.Empty(), grammar_.Literal(" "), line});
}

ExprId JsonTerms::MakeInteger() {
  const ExprId digit = ByteOf(&grammar_, "0123456789");
  const ExprId whole = grammar_.Concat({ByteOf(&grammar_, "123456789"), grammar_.Repeat(digit, 0, 15)});
  return grammar_.Concat({grammar_.Optional(grammar_.Literal("-")), grammar_.Alternate({grammar_.Literal("0"), whole})});
}

ExprId JsonTerms::MakeNumber() {
  const ExprId digit = ByteOf(&grammar_, "0123456789");
  const ExprId fraction = grammar_.Concat({grammar_.Literal("."), grammar_.Repeat(digit, 1, 16)});
  const ExprId exponent =
      grammar_.Concat({ByteOf(&grammar_, "eE"), grammar_.Optional(ByteOf(&grammar_, "+-")), grammar_.Repeat(digit, 1, 2)});
  return grammar_.Concat({MakeInteger(), grammar_.Optional(fraction), grammar_.Optional(exponent)});
}

ExprId JsonTerms::MakeString() {
  const ExprId escape = grammar_.Concat({grammar_.Literal("\\"), ByteOf(&grammar_, "\"\\/bfnrt")});
  const ExprId character =
      grammar_.Alternate({OneOf(&grammar_, Unescaped(), TextForm::kPlain), escape, UnicodeEscape(&grammar_)});
  return grammar_.Concat({grammar_.Literal("\""), grammar_.Repeat(character, 0, kUnbounded), grammar_.Literal("\"")});
}

ExprId JsonTerms::MakeAnyObject() {
  const ExprId colon = grammar_.Concat({Space(), grammar_.Literal(":"), Space()});
  const ExprId pair = grammar_.Concat({String(), colon, AnyValue()});
  const ExprId pairs = grammar_.Concat({pair, grammar_.Repeat(grammar_.Concat({Comma(), pair}), 0, kUnbounded)});
  return grammar_.Concat(
      {grammar_.Literal("{"), Space(), grammar_.Optional(grammar_.Concat({pairs, Space()})), grammar_.Literal("}")});
}

ExprId JsonTerms::MakeAnyValue() {
  const ExprId value = AnyValue();
  const ExprId values = grammar_.Concat({value, grammar_.Repeat(grammar_.Concat({Comma(), value}), 0, kUnbounded)});
  const ExprId array = grammar_.Concat(
      {grammar_.Literal("["), Space(), grammar_.Optional(grammar_.Concat({values, Space()})), grammar_.Literal("]")});
  return grammar_.Alternate(
      {AnyObject(), array, String(), Number(), grammar_.Literal("true"), grammar_.Literal("false"), grammar_.Literal("null")});
}

ExprId JsonTerms::KeyExcept(const std::vector<std::string>& names) {
  const ExprId any =
      grammar_.Concat({grammar_.Literal("\""), grammar_.Repeat(OneOf(&grammar_, Unescaped(), TextForm::kPlain), 0, kUnbounded),
                       grammar_.Literal("\"")});
  if (names.empty()) return any;
  std::vector<ExprId> taken;
  for (const std::string& name : names) {
    taken.push_back(grammar_.Literal(nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  }
  return grammar_.Minus(any, grammar_.Alternate(std::move(taken)));
}

ExprId JsonTerms::ShortCharacter() {
  return grammar_.Alternate({OneOf(&grammar_, Unescaped(), TextForm::kPlain),
                             grammar_.Concat({grammar_.Literal("\\"), ByteOf(&grammar_, "\"\\/bfnrt")})});
}

ExprId JsonTerms::MakeBlock() { return grammar_.Repeat(ShortCharacter(), kBlock, kBlock); }

absl::StatusOr<ExprId> JsonTerms::Lengths(const StringLimits& limits) {
  const int64_t min = limits.min_length;
  const ExprId character = ShortCharacter();
  if (min > kLongString) return InvalidArgument("minLength is %d, want at most %d", min, kLongString);
  const auto low = static_cast<int32_t>(min);
  if (!limits.max_length) return grammar_.Repeat(character, low, kUnbounded);
  const int64_t max = *limits.max_length;
  if (max < min) return grammar_.Alternate({});
  if (max <= kLongString) return grammar_.Repeat(character, low, static_cast<int32_t>(max));
  const int64_t blocks = std::min((max - min + 1) / kBlock - 1, kMaxBlocks);
  return grammar_.Concat({grammar_.Repeat(character, low, low),
                          grammar_.Repeat(Shared("500 characters", &JsonTerms::MakeBlock), 0, static_cast<int32_t>(blocks)),
                          grammar_.Repeat(character, 0, kBlock - 1)});
}

absl::StatusOr<std::vector<ExprId>> JsonTerms::Conditions(const StringLimits& limits, TextForm form) {
  std::vector<ExprId> conditions;
  if (limits.format) {
    const char* regex = RegexOfFormat(*limits.format);
    if (regex == nullptr) {
      return InvalidArgument("the format %s is not supported; supported: %s", *limits.format, NamesOfFormats());
    }
    ASSIGN_OR_RETURN(const ExprId expr, ParseRegex(&grammar_, regex, RegexMatch::kWhole, form));
    conditions.push_back(expr);
  }
  if (limits.pattern) {
    absl::StatusOr<ExprId> expr = ParseRegex(&grammar_, *limits.pattern, RegexMatch::kSearch, form);
    if (!expr.ok()) return Annotate(expr.status(), "pattern");
    conditions.push_back(*expr);
  }
  return conditions;
}

absl::StatusOr<ExprId> JsonTerms::Plain(const StringLimits& limits) {
  if (std::max(limits.min_length, limits.max_length.value_or(0)) > kLongString) {
    return InvalidArgument("a length above %d is not supported for text that is written plainly", kLongString);
  }
  ASSIGN_OR_RETURN(const std::vector<ExprId> conditions, Conditions(limits, TextForm::kPlain));
  if (limits.max_length && *limits.max_length < limits.min_length) return grammar_.Alternate({});
  ByteSet bytes = ByteSet().set();
  bytes.reset(kControlByte);
  ExprId all = grammar_.Repeat(grammar_.Bytes(bytes), 0, kUnbounded);
  if (limits.min_length > 0 || limits.max_length) {
    const ExprId character = OneOf(&grammar_, CodePointSet({{0, kMaxCodePoint}}), TextForm::kPlain);
    all = grammar_.Repeat(character, static_cast<int32_t>(limits.min_length),
                          limits.max_length ? static_cast<int32_t>(*limits.max_length) : kUnbounded);
  }
  for (const ExprId condition : conditions) all = grammar_.And(all, condition);
  return all;
}

absl::StatusOr<ExprId> JsonTerms::Contents(const StringLimits& limits) {
  ASSIGN_OR_RETURN(std::vector<ExprId> conditions, Conditions(limits, TextForm::kJsonString));
  const bool lengths = limits.min_length > 0 || limits.max_length;
  if (lengths && !conditions.empty() && std::max(limits.min_length, limits.max_length.value_or(0)) > kLongString) {
    return InvalidArgument("a length above %d beside pattern or format is not supported", kLongString);
  }
  if (lengths) {
    ASSIGN_OR_RETURN(const ExprId expr, Lengths(limits));
    conditions.push_back(expr);
  }
  ExprId all = conditions[0];
  for (size_t i = 1; i < conditions.size(); ++i) all = grammar_.And(all, conditions[i]);
  return all;
}

absl::StatusOr<ExprId> JsonTerms::String(const StringLimits& limits) {
  if (limits.min_length == 0 && !limits.max_length && !limits.pattern && !limits.format) return String();
  const std::string name = absl::StrCat("string of ", limits.min_length, " to ", limits.max_length.value_or(-1), " characters",
                                        limits.format ? absl::StrCat(", format ", *limits.format) : std::string(),
                                        limits.pattern ? absl::StrCat(", pattern ", *limits.pattern) : std::string());
  const auto it = rules_.find(name);
  if (it != rules_.end()) return grammar_.Call(it->second);
  ASSIGN_OR_RETURN(const ExprId contents, Contents(limits));
  const RuleId rule = grammar_.AddRule(name);
  rules_.emplace(name, rule);
  grammar_.SetRule(rule, grammar_.Concat({grammar_.Literal("\""), contents, grammar_.Literal("\"")}));
  return grammar_.Call(rule);
}

}  // namespace ferry::constraint
