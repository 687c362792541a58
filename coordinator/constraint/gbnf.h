#pragma once

// GBNF, the grammars of llama.cpp: rules `name ::= alternatives` from the rule `root`, with "literals", [classes], `.`,
// groups, | and * + ? {m} {m,} {m,n}, and # comments. A rule ends with its line, except inside a group or behind | or ::=.

#include <string_view>

#include "common/status.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

inline constexpr size_t kMaxGbnfBytes = 256 * 1024;

// InvalidArgument names the line and the fault: bad syntax, a rule that is not defined or defined twice, no rule
// `root`, groups nested deeper than 100, a repetition of more than kMaxRepetition, token references (<[42]>, <name>), which
// are not supported.
absl::StatusOr<Grammar> ParseGbnf(std::string_view text);

}  // namespace ferry::constraint
