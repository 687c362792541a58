#include "coordinator/constraint/regex.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/constraint/utf8_cursor.h"

namespace ferry::constraint {
namespace {

constexpr int kMaxGroupDepth = 100;

const CodePointSet& Digits() {
  static const auto& set = *new CodePointSet({{'0', '9'}});
  return set;
}
const CodePointSet& WordCharacters() {
  static const auto& set = *new CodePointSet({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}});
  return set;
}
const CodePointSet& Spaces() {
  static const auto& set = *new CodePointSet({{9, 13},
                                              {' ', ' '},
                                              {0xA0, 0xA0},
                                              {0x1680, 0x1680},
                                              {0x2000, 0x200A},
                                              {0x2028, 0x2029},
                                              {0x202F, 0x202F},
                                              {0x205F, 0x205F},
                                              {0x3000, 0x3000},
                                              {0xFEFF, 0xFEFF}});
  return set;
}
const CodePointSet& LineEnds() {
  static const auto& set = *new CodePointSet({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
  return set;
}

std::optional<CodePointSet> NamedClass(uint32_t letter) {
  switch (letter) {
    case 'd':
      return Digits();
    case 'D':
      return Digits().Complement();
    case 'w':
      return WordCharacters();
    case 'W':
      return WordCharacters().Complement();
    case 's':
      return Spaces();
    case 'S':
      return Spaces().Complement();
    default:
      return std::nullopt;
  }
}

class Parser {
 public:
  Parser(Grammar* grammar, std::string_view pattern, RegexMatch match, TextForm form)
      : grammar_(*grammar), in_(pattern), match_(match), form_(form) {}

  absl::StatusOr<ExprId> Parse() {
    std::vector<ExprId> alternatives;
    do {
      const bool begins = in_.Take('^');
      ASSIGN_OR_RETURN(const ExprId body, Sequence(/*depth=*/0));
      const bool ends = in_.Take('$');
      if (ends && !in_.AtEnd() && !in_.Looks("|")) return At("$ is supported at the end of an alternative of the whole pattern");
      if (match_ == RegexMatch::kWhole) {
        alternatives.push_back(body);
      } else {
        alternatives.push_back(
            grammar_.Concat({begins ? grammar_.Empty() : Anything(), body, ends ? grammar_.Empty() : Anything()}));
      }
    } while (in_.Take('|'));
    if (!in_.AtEnd()) return At("this ) closes no group");
    return grammar_.Alternate(std::move(alternatives));
  }

 private:
  absl::Status At(std::string_view what) const { return InvalidArgument("at byte %d of the pattern: %s", in_.position(), what); }
  ExprId One(const CodePointSet& set) { return OneOf(&grammar_, set, form_); }
  ExprId Anything() { return grammar_.Repeat(One(CodePointSet().Complement()), 0, kUnbounded); }

  absl::StatusOr<ExprId> Sequence(int depth) {
    std::vector<ExprId> parts;
    while (!in_.AtEnd() && !in_.Looks("|") && !in_.Looks(")")) {
      if (in_.Looks("$") && depth == 0) break;
      ASSIGN_OR_RETURN(const ExprId atom, Atom(depth));
      ASSIGN_OR_RETURN(const ExprId repeated, Quantified(atom));
      parts.push_back(repeated);
    }
    return grammar_.Concat(std::move(parts));
  }

  absl::StatusOr<ExprId> Group(int depth) {
    if (depth >= kMaxGroupDepth) return At("groups are nested deeper than 100");
    if (in_.Take('?')) {
      if (in_.Looks("=") || in_.Looks("!") || in_.Looks("<=") || in_.Looks("<!")) return At("look-around is not supported");
      if (in_.Take('P') && !in_.Looks("<")) return At("this kind of group is not supported");
      if (in_.Take('<')) {
        while (!in_.AtEnd() && !in_.Looks(">")) RETURN_IF_ERROR(in_.Next().status());
        if (!in_.Take('>')) return At("the name of a group has no end");
      } else if (!in_.Take(':')) {
        return At("flags and other groups that begin with (? are not supported; (?: is");
      }
    }
    std::vector<ExprId> alternatives;
    do {
      ASSIGN_OR_RETURN(const ExprId body, Sequence(depth + 1));
      alternatives.push_back(body);
    } while (in_.Take('|'));
    if (!in_.Take(')')) return At("a group has no end");
    return grammar_.Alternate(std::move(alternatives));
  }

  absl::StatusOr<ExprId> Atom(int depth) {
    ASSIGN_OR_RETURN(const uint32_t c, in_.Next());
    switch (c) {
      case '(':
        return Group(depth);
      case '[': {
        ASSIGN_OR_RETURN(const CodePointSet set, Class());
        return One(set);
      }
      case '.':
        return One(LineEnds().Complement());
      case '\\': {
        ASSIGN_OR_RETURN(const CodePointSet set, Escape(/*in_class=*/false));
        return One(set);
      }
      case '*':
      case '+':
      case '?':
        return At("a quantifier has nothing to repeat");
      case '^':
      case '$':
        return At("^ and $ are supported at the ends of an alternative of the whole pattern");
      default:
        return One({{c, c}});
    }
  }

  absl::StatusOr<ExprId> Quantified(ExprId atom) {
    int32_t min = 0, max = kUnbounded;
    if (in_.Take('*')) {
    } else if (in_.Take('+')) {
      min = 1;
    } else if (in_.Take('?')) {
      max = 1;
    } else if (in_.Looks("{")) {
      ASSIGN_OR_RETURN(const bool found, in_.Bounds(kMaxRepetition, &min, &max));
      if (!found) return At("{ begins no {m,n}; write \\{ for the character");
    } else {
      return atom;
    }
    in_.Take('?');  // lazy: the same texts match
    if (in_.Looks("+")) return At("possessive quantifiers are not supported");
    if (in_.Looks("*") || in_.Looks("?") || in_.Looks("{")) return At("a quantifier has nothing to repeat");
    return grammar_.Repeat(atom, min, max);
  }

  // Behind a backslash.
  absl::StatusOr<CodePointSet> Escape(bool in_class) {
    if (in_.AtEnd()) return At("the pattern ends in a backslash");
    ASSIGN_OR_RETURN(const uint32_t c, in_.Next());
    if (const std::optional<CodePointSet> named = NamedClass(c)) return *named;
    const auto one = [](uint32_t code_point) { return CodePointSet{{code_point, code_point}}; };
    switch (c) {
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'b':
        if (in_class) return one('\b');
        return At("\\b (word boundary) is not supported");
      case 'x': {
        ASSIGN_OR_RETURN(const uint32_t value, in_.Hex(2, 2));
        return one(value);
      }
      case 'u': {
        const bool braces = in_.Take('{');
        ASSIGN_OR_RETURN(const uint32_t value, in_.Hex(braces ? 1 : 4, braces ? 6 : 4));
        if (braces && !in_.Take('}')) return At("\\u{ has no end");
        if (value > kMaxCodePoint || (value >= 0xD800 && value <= 0xDFFF)) return At("\\u names no character");
        return one(value);
      }
      default:
        break;
    }
    if (c >= '1' && c <= '9') return At("back-references are not supported");
    if (c == 'k') return At("back-references are not supported");
    if (c == 'p' || c == 'P') return At("\\p (Unicode properties) is not supported");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      return At(absl::StrFormat("\\%c is not supported", static_cast<char>(c)));
    }
    return one(c);
  }

  absl::StatusOr<CodePointSet> Class() {
    const bool negated = in_.Take('^');
    std::vector<CodePointRange> ranges;
    while (true) {
      if (in_.AtEnd()) return At("a class has no end");
      if (in_.Take(']')) break;
      ASSIGN_OR_RETURN(const CodePointSet first, ClassMember());
      const bool single = first.ranges().size() == 1 && first.ranges()[0].first == first.ranges()[0].last;
      if (in_.Looks("-") && !in_.Looks("-]")) {
        if (!single) return At("a range begins with a class");
        in_.Take('-');
        ASSIGN_OR_RETURN(const CodePointSet last, ClassMember());
        if (last.ranges().size() != 1 || last.ranges()[0].first != last.ranges()[0].last) return At("a range ends with a class");
        if (last.ranges()[0].first < first.ranges()[0].first) return At("a range ends before it begins");
        ranges.push_back({first.ranges()[0].first, last.ranges()[0].first});
      } else {
        ranges.insert(ranges.end(), first.ranges().begin(), first.ranges().end());
      }
    }
    const CodePointSet set(std::move(ranges));
    return negated ? set.Complement() : set;
  }

  absl::StatusOr<CodePointSet> ClassMember() {
    if (in_.AtEnd()) return At("a class has no end");
    if (in_.Looks("[:")) return At("[: :] classes are not supported");
    ASSIGN_OR_RETURN(const uint32_t c, in_.Next());
    if (c == '\\') return Escape(/*in_class=*/true);
    return CodePointSet{{c, c}};
  }

  Grammar& grammar_;
  Utf8Cursor in_;
  const RegexMatch match_;
  const TextForm form_;
};

}  // namespace

absl::StatusOr<ExprId> ParseRegex(Grammar* grammar, std::string_view pattern, RegexMatch match, TextForm form) {
  if (pattern.size() > kMaxRegexBytes) {
    return InvalidArgument("the pattern has %d bytes, want at most %d", pattern.size(), kMaxRegexBytes);
  }
  return Parser(grammar, pattern, match, form).Parse();
}

}  // namespace ferry::constraint
