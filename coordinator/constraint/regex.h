#pragma once

// Regular expressions as an expression over bytes. Syntax: that of ECMAScript (and, where they agree, of PCRE and Python),
// limited to regular languages: literals, `.`, classes, \d \w \s and their complements, escapes (\n \t \xHH \uHHHH \u{H}),
// groups (also named ones), alternation, * + ? {m} {m,} {m,n}, lazy or not. ^ and $ may begin and end an alternative of
// the whole pattern. \d and \w are ASCII.

#include <string_view>

#include "common/status.h"
#include "coordinator/constraint/code_points.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

enum class RegexMatch {
  kWhole,   // the pattern is the text
  kSearch,  // the text contains it, as a JSON schema's "pattern" demands
};

inline constexpr size_t kMaxRegexBytes = 16384;
inline constexpr int32_t kMaxRepetition = 10000;

// InvalidArgument: a pattern that is not well-formed UTF-8 or not in the syntax above; the message says where and names a
// construct that has no automaton (look-around, back-references, \b, \p, flags), a bound above kMaxRepetition, or groups
// nested deeper than 100.
absl::StatusOr<ExprId> ParseRegex(Grammar* grammar, std::string_view pattern, RegexMatch match, TextForm form);

}  // namespace ferry::constraint
