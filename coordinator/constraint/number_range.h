#pragma once

// Decimal numbers between two bounds, as JSON writes them, as an expression over bytes.

#include <optional>
#include <string>
#include <string_view>

#include "common/status.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

// A number as its decimal digits.
struct Decimal {
  bool negative = false;
  std::string whole = "0";  // without leading zeros
  std::string fraction;     // without trailing zeros

  // `text` is a JSON number. InvalidArgument: it needs more than 40 digits to be written without an exponent.
  static absl::StatusOr<Decimal> Parse(std::string_view text);
  bool IsZero() const { return whole == "0" && fraction.empty(); }
};

struct NumberBounds {
  std::optional<Decimal> min, max;
  bool min_exclusive = false, max_exclusive = false;
};

// Numbers are written without an exponent: integers with at most 16 digits, others with at most 15, so that a reader who
// takes them for doubles finds them within the bounds. Matches nothing when there is no such number.
ExprId NumbersWithin(Grammar* grammar, const NumberBounds& bounds, bool integers);

}  // namespace ferry::constraint
