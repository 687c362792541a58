#pragma once

// Values as text, as Python writes them; and the handling of characters that Python's strings have.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "gateway/template/value.h"

namespace ferry::jinja {

// str(value): strings as they are, everything else as repr writes it; undefined is empty.
// InvalidArgument: values more than 200 levels within one another.
absl::StatusOr<MarkedString> ToText(const Value& value, Budget* budget);

struct JsonFormat {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // of one level; without it everything is on one line
  std::string item_separator = ", ";  // "," where an indent is given
  std::string key_separator = ": ";
};
// json.dumps(value). InvalidArgument also: a value that JSON does not have.
absl::StatusOr<MarkedString> ToJson(const Value& value, const JsonFormat& format, Budget* budget);

// repr(float): the shortest digits that give the same number.
std::string FloatText(double number);

// Where the characters of a UTF-8 text begin, and its end: one more than it has characters.
std::vector<size_t> CharacterOffsets(std::string_view text);
size_t CountCharacters(std::string_view text);
char32_t CharacterAt(std::string_view text, size_t byte);
// As text.find(part, at), in linear time whatever the texts are.
size_t FindText(std::string_view text, std::string_view part, size_t at = 0);
bool IsSpace(char32_t c);  // str.isspace
char32_t ToUpper(char32_t c);
char32_t ToLower(char32_t c);

}  // namespace ferry::jinja
