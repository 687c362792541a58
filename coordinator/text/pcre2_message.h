#pragma once

// PCRE2's words for its errors.

#include <string>

namespace ferry {

// `error`: a number that PCRE2 returned for a pattern or for a match.
std::string Pcre2Message(int error);

}  // namespace ferry
