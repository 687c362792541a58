#pragma once

// Which filters and tests there are, so that the parser refuses all others with their line.

#include <string_view>

namespace ferry::jinja {

bool IsFilter(std::string_view name);
bool IsTest(std::string_view name);
// Whether a name behind the test is its operand: "x is divisibleby n", but not "x is defined else".
bool TestTakesAnOperand(std::string_view name);

}  // namespace ferry::jinja
