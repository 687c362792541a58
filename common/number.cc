#include "common/number.h"

#include <charconv>
#include <cmath>
#include <system_error>

namespace ferry {
namespace {

constexpr size_t kMaxShown = 40;  // of a text that is no number

std::string Shown(std::string_view text) { return std::string(text.substr(0, kMaxShown)); }

// The power of two of a unit; -1: there is no such unit.
int ShiftOf(char unit) {
  switch (unit) {
    case 'k':
    case 'K':
      return 10;
    case 'm':
    case 'M':
      return 20;
    case 'g':
    case 'G':
      return 30;
    default:
      return -1;
  }
}

}  // namespace

absl::StatusOr<int64_t> ParseInteger(std::string_view text, int64_t min, int64_t max, bool units) {
  const absl::Status refused = InvalidArgument("'%s', want a whole number from %d to %d", Shown(text), min, max);
  std::string_view digits = text;
  int shift = 0;
  if (units && !digits.empty() && ShiftOf(digits.back()) > 0) {
    shift = ShiftOf(digits.back());
    digits.remove_suffix(1);
  }
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) return refused;
  if (value > (INT64_MAX >> shift) || value < (INT64_MIN >> shift)) return refused;
  value *= int64_t{1} << shift;
  if (value < min || value > max) return refused;
  return value;
}

absl::StatusOr<uint64_t> ParseUnsigned(std::string_view text, uint64_t max) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > max) {
    return InvalidArgument("'%s', want a whole number from 0 to %d", Shown(text), max);
  }
  return value;
}

absl::StatusOr<double> ParseDecimal(std::string_view text, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= min && value <= max)) {  // NaN fails
    return InvalidArgument("'%s', want a number from %g to %g", Shown(text), min, max);
  }
  return value;
}

}  // namespace ferry
