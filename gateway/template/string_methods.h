#pragma once

// Python's methods of strings that filters share with them. Marks follow the characters.

#include <string_view>
#include <vector>

#include "common/status.h"
#include "gateway/template/marked_string.h"
#include "gateway/template/value.h"

namespace ferry::jinja {

enum class Side { kLeft, kRight, kBoth };

// Without the characters of `characters` (null: white space) at its ends.
MarkedString Strip(const MarkedString& text, const MarkedString* characters, Side side);
// `count` < 0: all of them.
absl::StatusOr<MarkedString> Replace(const MarkedString& text, const MarkedString& from, const MarkedString& to, int64_t count,
                                     Budget* budget);
absl::StatusOr<MarkedString> Join(const std::vector<Value>& items, const MarkedString& separator, Budget* budget);
MarkedString Upper(const MarkedString& text);
MarkedString Lower(const MarkedString& text);
MarkedString Capitalize(const MarkedString& text);  // the first character upper case, all others lower case
MarkedString Title(const MarkedString& text);       // the first letter of each word upper case, all others lower case

}  // namespace ferry::jinja
