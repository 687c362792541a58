#include "coordinator/constraint/gbnf.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/constraint/code_points.h"
#include "coordinator/constraint/regex.h"
#include "coordinator/constraint/utf8_cursor.h"

namespace ferry::constraint {
namespace {

constexpr int kMaxGroupDepth = 100;
constexpr int kMaxQuantifiers = 8;  // of one item: each is a level of nesting, as a group is

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text), in_(text) {}

  absl::StatusOr<Grammar> Parse() {
    if (const absl::Status status = Rules(); !status.ok()) {
      const auto line = std::count(text_.begin(), text_.begin() + in_.position(), '\n') + 1;
      return InvalidArgument("line %d: %s", line, status.message());
    }
    for (const auto& [name, rule] : rules_) {
      if (grammar_.rules()[rule].expr < 0) return InvalidArgument("the rule %s is used but not defined", name);
    }
    const auto root = rules_.find("root");
    if (root == rules_.end()) return InvalidArgument("the grammar has no rule root");
    grammar_.SetRoot(root->second);
    return std::move(grammar_);
  }

 private:
  void Space(bool over_lines) {
    while (!in_.AtEnd()) {
      if (in_.Take('#')) {
        while (!in_.AtEnd() && in_.Peek() != '\n' && in_.Peek() != '\r') in_.Take(in_.Peek());
      } else if (!in_.Take(' ') && !in_.Take('\t') && !(over_lines && (in_.Take('\n') || in_.Take('\r')))) {
        return;
      }
    }
  }

  std::string Name() {
    const size_t begin = in_.position();
    while (!in_.AtEnd() && IsNameCharacter(in_.Peek())) in_.Take(in_.Peek());
    return std::string(in_.Since(begin));
  }

  RuleId RuleOf(const std::string& name) {
    const auto [it, added] = rules_.emplace(name, -1);
    if (added) it->second = grammar_.AddRule("rule " + name);
    return it->second;
  }

  absl::Status Rules() {
    for (Space(true); !in_.AtEnd(); Space(true)) {
      const std::string name = Name();
      if (name.empty()) return InvalidArgument("want the name of a rule");
      Space(false);
      if (!in_.Take(':') || !in_.Take(':') || !in_.Take('=')) return InvalidArgument("want ::= behind %s", name);
      Space(true);
      ASSIGN_OR_RETURN(const ExprId body, Alternatives(0));
      const RuleId rule = RuleOf(name);
      if (grammar_.rules()[rule].expr >= 0) return InvalidArgument("the rule %s is defined twice", name);
      grammar_.SetRule(rule, body);
      if (!in_.AtEnd() && !in_.Looks("\n") && !in_.Looks("\r")) return InvalidArgument("want | or the end of the line");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExprId> Alternatives(int depth) {
    std::vector<ExprId> alternatives;
    do {
      Space(!alternatives.empty() || depth > 0);
      ASSIGN_OR_RETURN(const ExprId sequence, Sequence(depth));
      alternatives.push_back(sequence);
    } while (in_.Take('|'));
    return grammar_.Alternate(std::move(alternatives));
  }

  absl::StatusOr<ExprId> Sequence(int depth) {
    std::vector<ExprId> parts;
    while (!in_.AtEnd() && !in_.Looks("|") && !in_.Looks(")") && !in_.Looks("\n") && !in_.Looks("\r")) {
      ASSIGN_OR_RETURN(ExprId part, Item(depth));
      Space(depth > 0);
      for (int quantifiers = 0;; ++quantifiers) {
        int32_t min = 0, max = kUnbounded;
        if (in_.Take('+')) {
          min = 1;
        } else if (in_.Take('?')) {
          max = 1;
        } else if (in_.Looks("{")) {
          ASSIGN_OR_RETURN(const bool found, in_.Bounds(kMaxRepetition, &min, &max));
          if (!found) return InvalidArgument("want {m}, {m,} or {m,n}");
        } else if (!in_.Take('*')) {
          break;
        }
        if (quantifiers == kMaxQuantifiers) return InvalidArgument("more than %d quantifiers of one item", kMaxQuantifiers);
        part = grammar_.Repeat(part, min, max);
        Space(depth > 0);
      }
      parts.push_back(part);
    }
    return grammar_.Concat(std::move(parts));
  }

  absl::StatusOr<ExprId> Item(int depth) {
    if (in_.Take('"')) return Literal();
    if (in_.Take('[')) return Class();
    if (in_.Take('.')) return OneOf(&grammar_, CodePointSet().Complement(), TextForm::kPlain);
    if (in_.Take('(')) {
      if (depth >= kMaxGroupDepth) return InvalidArgument("groups are nested deeper than %d", kMaxGroupDepth);
      ASSIGN_OR_RETURN(const ExprId group, Alternatives(depth + 1));
      if (!in_.Take(')')) return InvalidArgument("a group has no end");
      return group;
    }
    if (in_.Looks("<") || in_.Looks("!")) return InvalidArgument("token references (<[42]>, <name>) are not supported");
    const std::string name = Name();
    if (name.empty()) return InvalidArgument("want a literal, a class, a group or the name of a rule");
    return grammar_.Call(RuleOf(name));
  }

  absl::StatusOr<uint32_t> Character() {
    ASSIGN_OR_RETURN(const uint32_t c, in_.Next());
    if (c != '\\') return c;
    ASSIGN_OR_RETURN(const uint32_t escaped, in_.Next());
    switch (escaped) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        return in_.Hex(2, 2);
      case 'u':
        return in_.Hex(4, 4);
      case 'U':
        return in_.Hex(8, 8);
      case '"':
      case '\\':
      case '[':
      case ']':
      case '^':
      case '-':
        return escaped;
      default:
        return InvalidArgument("unknown escape; \\n \\r \\t \\xHH \\uHHHH \\UHHHHHHHH \\\" \\\\ \\[ \\] \\^ \\- are known");
    }
  }

  absl::StatusOr<ExprId> Literal() {
    std::vector<ExprId> parts;
    while (!in_.Take('"')) {
      if (in_.AtEnd()) return InvalidArgument("a literal has no end");
      ASSIGN_OR_RETURN(const uint32_t c, Character());
      RETURN_IF_ERROR(CheckCharacter(c));
      parts.push_back(OneOf(&grammar_, {{c, c}}, TextForm::kPlain));
    }
    return grammar_.Concat(std::move(parts));
  }

  absl::StatusOr<ExprId> Class() {
    const bool negated = in_.Take('^');
    std::vector<CodePointRange> ranges;
    while (!in_.Take(']')) {
      if (in_.AtEnd()) return InvalidArgument("a class has no end");
      ASSIGN_OR_RETURN(const uint32_t first, Character());
      RETURN_IF_ERROR(CheckCharacter(first));
      uint32_t last = first;
      if (in_.Looks("-") && !in_.Looks("-]")) {
        in_.Take('-');
        ASSIGN_OR_RETURN(last, Character());
        RETURN_IF_ERROR(CheckCharacter(last));
        if (last < first) return InvalidArgument("a range ends before it begins");
      }
      ranges.push_back({first, last});
    }
    const CodePointSet set(std::move(ranges));
    return OneOf(&grammar_, negated ? set.Complement() : set, TextForm::kPlain);
  }

  static absl::Status CheckCharacter(uint32_t c) {
    if (c > kMaxCodePoint || (c >= 0xD800 && c <= 0xDFFF)) return InvalidArgument("U+%04X is no character", c);
    return absl::OkStatus();
  }

  const std::string_view text_;
  Utf8Cursor in_;
  Grammar grammar_;
  std::map<std::string, RuleId> rules_;
};

}  // namespace

absl::StatusOr<Grammar> ParseGbnf(std::string_view text) {
  if (text.size() > kMaxGbnfBytes) return InvalidArgument("it has %d bytes, want at most %d", text.size(), kMaxGbnfBytes);
  return Parser(text).Parse();
}

}  // namespace ferry::constraint
