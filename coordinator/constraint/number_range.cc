#include "coordinator/constraint/number_range.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

namespace ferry::constraint {
namespace {

constexpr int kIntegerDigits = 16;
constexpr int kDoubleDigits = 15;   // a double keeps so many
constexpr int kFractionDigits = 4;  // at least so many may be written
constexpr int kMaxBoundDigits = 40;

// Magnitudes of one number of whole digits: digits of both bounds side by side, whole part first.
class DigitRange {
 public:
  // `low` and `high` have `whole` + `fraction` digits. Not tight: any digits will do on that side.
  DigitRange(Grammar* grammar, std::string low, std::string high, int whole, int fraction, bool low_exclusive,
             bool high_exclusive)
      : grammar_(*grammar),
        low_(std::move(low)),
        high_(std::move(high)),
        whole_(whole),
        fraction_(fraction),
        low_exclusive_(low_exclusive),
        high_exclusive_(high_exclusive) {}

  ExprId Build() { return From(0, true, true); }

 private:
  ExprId Digits(char first, char last) {
    ByteSet set;
    for (char c = first; c <= last; ++c) set.set(static_cast<uint8_t>(c));
    return grammar_.Bytes(set);
  }
  static bool AllZero(std::string_view digits) { return digits.find_first_not_of('0') == std::string_view::npos; }

  // Whether the number may end in front of digit i, when its digits so far are those of a bound.
  bool MayEnd(int i, bool on_low, bool on_high) const {
    if (on_low && (low_exclusive_ || !AllZero(std::string_view(low_).substr(i)))) return false;
    return !(on_high && high_exclusive_ && AllZero(std::string_view(high_).substr(i)));
  }

  ExprId Free(int i) {
    const ExprId digit = Digits('0', '9');
    const auto fraction = [&](int done) {
      if (done > 0) return grammar_.Repeat(digit, 0, fraction_ - done);
      if (fraction_ == 0) return grammar_.Empty();
      return grammar_.Optional(grammar_.Concat({grammar_.Literal("."), grammar_.Repeat(digit, 1, fraction_)}));
    };
    if (i >= whole_) return fraction(i - whole_);
    return grammar_.Concat({grammar_.Repeat(digit, whole_ - i, whole_ - i), fraction(0)});
  }

  ExprId From(int i, bool on_low, bool on_high) {
    if (!on_low && !on_high) return Free(i);
    std::vector<ExprId> ways;
    if (i >= whole_ && MayEnd(i, on_low, on_high)) ways.push_back(grammar_.Empty());
    if (i < whole_ + fraction_) {
      const ExprId point = i == whole_ ? grammar_.Literal(".") : grammar_.Empty();
      const char first = on_low ? low_[i] : '0', last = on_high ? high_[i] : '9';
      const auto add = [&](char from, char to, bool low, bool high) {
        if (from <= to) ways.push_back(grammar_.Concat({point, Digits(from, to), From(i + 1, low, high)}));
      };
      if (first == last) {
        add(first, last, on_low, on_high);
      } else if (first < last) {
        if (on_low) add(first, first, true, false);
        add(static_cast<char>(first + on_low), static_cast<char>(last - on_high), false, false);
        if (on_high) add(last, last, false, true);
      }
    }
    return grammar_.Alternate(std::move(ways));
  }

  Grammar& grammar_;
  const std::string low_, high_;
  const int whole_, fraction_;
  const bool low_exclusive_, high_exclusive_;
};

struct Magnitude {
  std::string whole, fraction;
  bool exclusive = false;
};

// The fraction of a bound in `digits` digits: exactly, or cut off when it has more.
std::string Fraction(const Magnitude& bound, int digits) {
  std::string fraction = bound.fraction.substr(0, digits);
  fraction.resize(digits, '0');
  return fraction;
}

// Magnitudes from `low` to `high` (none: as many digits as fit).
ExprId Magnitudes(Grammar* grammar, const Magnitude& low, const std::optional<Magnitude>& high, bool integers) {
  int fraction = 0, max_whole = kIntegerDigits;
  if (!integers) {
    const size_t needed = std::max(low.fraction.size(), high ? high->fraction.size() : 0);
    const int room = kDoubleDigits - static_cast<int>(low.whole.size());
    fraction = std::max(std::min(static_cast<int>(std::max<size_t>(needed, kFractionDigits)), room), 0);
    max_whole = kDoubleDigits - fraction;
  }
  std::vector<ExprId> ways;
  const int last_whole = high ? std::min(max_whole, static_cast<int>(high->whole.size())) : max_whole;
  for (int whole = static_cast<int>(low.whole.size()); whole <= last_whole; ++whole) {
    const bool from_low = whole == static_cast<int>(low.whole.size());
    const bool to_high = high && whole == static_cast<int>(high->whole.size());
    const std::string zeros(fraction, '0'), nines(fraction, '9');
    std::string first(whole, '0');
    if (whole > 1) first[0] = '1';
    const std::string low_digits = from_low ? low.whole + Fraction(low, fraction) : first + zeros;
    const std::string high_digits = to_high ? high->whole + Fraction(*high, fraction) : std::string(whole, '9') + nines;
    if (low_digits > high_digits) continue;
    // A bound that was cut off is below the true one: as a lower bound it is outside itself, as an upper one inside.
    const bool low_cut = from_low && static_cast<int>(low.fraction.size()) > fraction;
    const bool high_cut = to_high && static_cast<int>(high->fraction.size()) > fraction;
    ways.push_back(DigitRange(grammar, low_digits, high_digits, whole, fraction, from_low && (low.exclusive || low_cut),
                              to_high && high->exclusive && !high_cut)
                       .Build());
  }
  return grammar->Alternate(std::move(ways));
}

Magnitude MagnitudeOf(const Decimal& decimal, bool exclusive) { return {decimal.whole, decimal.fraction, exclusive}; }

}  // namespace

absl::StatusOr<Decimal> Decimal::Parse(std::string_view text) {
  Decimal result;
  size_t i = 0;
  if (i < text.size() && text[i] == '-') {
    result.negative = true;
    ++i;
  }
  std::string digits;
  int64_t point = -1, exponent = 0;
  for (; i < text.size(); ++i) {
    if (text[i] == '.') {
      point = static_cast<int64_t>(digits.size());
    } else if (text[i] == 'e' || text[i] == 'E') {
      exponent = std::strtol(std::string(text.substr(i + 1)).c_str(), nullptr, 10);
      break;
    } else {
      digits += text[i];
    }
  }
  if (point < 0) point = static_cast<int64_t>(digits.size());
  point += exponent;
  if (point > kMaxBoundDigits || point < -kMaxBoundDigits || digits.size() > kMaxBoundDigits) {
    return InvalidArgument("%s needs more than %d digits", text, kMaxBoundDigits);
  }
  if (point < 0) {
    digits.insert(0, static_cast<size_t>(-point), '0');
    point = 0;
  }
  if (static_cast<int64_t>(digits.size()) < point) digits.resize(point, '0');
  result.whole = digits.substr(0, point);
  result.fraction = digits.substr(point);
  result.whole.erase(0, std::min(result.whole.find_first_not_of('0'), result.whole.size()));
  if (result.whole.empty()) result.whole = "0";
  result.fraction.erase(result.fraction.find_last_not_of('0') + 1);
  return result;
}

ExprId NumbersWithin(Grammar* grammar, const NumberBounds& bounds, bool integers) {
  const Magnitude zero = {"0", "", false}, above_zero = {"0", "", true};
  std::vector<ExprId> ways;
  const bool min_below_zero = !bounds.min || (bounds.min->negative && !bounds.min->IsZero());
  const bool max_above_zero = !bounds.max || (!bounds.max->negative && !bounds.max->IsZero());
  if (min_below_zero) {
    const bool max_negative = bounds.max && bounds.max->negative && !bounds.max->IsZero();
    const Magnitude low = max_negative ? MagnitudeOf(*bounds.max, bounds.max_exclusive) : above_zero;
    std::optional<Magnitude> high;
    if (bounds.min) high = MagnitudeOf(*bounds.min, bounds.min_exclusive);
    ways.push_back(grammar->Concat({grammar->Literal("-"), Magnitudes(grammar, low, high, integers)}));
  }
  const bool max_is_zero = bounds.max && bounds.max->IsZero() && !bounds.max_exclusive;
  if (max_above_zero || max_is_zero) {
    const Magnitude low = min_below_zero ? zero : MagnitudeOf(*bounds.min, bounds.min_exclusive);
    std::optional<Magnitude> high;
    if (bounds.max) high = MagnitudeOf(*bounds.max, bounds.max_exclusive);
    ways.push_back(Magnitudes(grammar, low, high, integers));
  }
  return grammar->Alternate(std::move(ways));
}

}  // namespace ferry::constraint
