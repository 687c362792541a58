#pragma once

// UTF-8, one character at a time (Unicode 15, table 3-7).

#include <cstddef>
#include <string>
#include <string_view>

namespace ferry {

enum class Utf8Kind {
  kCharacter,   // a well-formed character
  kIncomplete,  // the text ends inside a character that is well formed so far
  kInvalid,     // no continuation makes these bytes well formed
};

struct Utf8Prefix {
  Utf8Kind kind;
  size_t bytes;         // in [1, 4]; for an invalid sequence its maximal subpart, which one U+FFFD replaces
  char32_t code_point;  // kCharacter only
};

// What `text` begins with. `text` must not be empty.
Utf8Prefix FirstOfUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

// Appends `code_point`, at most U+10FFFF and no surrogate, to `text`.
void AppendUtf8(char32_t code_point, std::string* text);

// Appends `text` with every maximal subpart of an ill-formed sequence replaced by U+FFFD, as Python's
// bytes.decode("utf-8", "replace") does. An incomplete character at the end is ill-formed too.
void AppendWithReplacements(std::string_view text, std::string* out);

// The same as a new text, for fields that must be UTF-8.
std::string WithReplacements(std::string_view text);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace ferry
