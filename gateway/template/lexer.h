#pragma once

// A template as tokens. White space around tags is settled here: "-" and "+" signs, trim_blocks, lstrip_blocks, and the
// newline at the end of the template, which does not count.

#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace ferry::jinja {

enum class TokenKind {
  kText,
  kOutputBegin,
  kOutputEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;  // of a string its value, of a number its digits without "_"
};

// Ends with kEnd. InvalidArgument names the line: a tag, string, comment or raw block that does not end, a character
// that no token begins with, brackets that do not match.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

}  // namespace ferry::jinja
