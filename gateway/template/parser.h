#pragma once

// A template's text as a tree.

#include <string_view>

#include "common/status.h"
#include "gateway/template/ast.h"

namespace ferry::jinja {

inline constexpr int kMaxTreeDepth = 160;  // of expressions and blocks within one another

// InvalidArgument names the line and the fault: syntax, a statement, filter or test that is not known,
// nesting deeper than kMaxTreeDepth.
absl::StatusOr<ParsedTemplate> Parse(std::string_view source);

}  // namespace ferry::jinja
