#pragma once

// A count, size or offset that came from outside the process. Its arithmetic records an overflow instead of wrapping.
//
// A CheckedSize is either a value in [0, 2^63 - 1] or invalid; a result is invalid when an operand is, or when the true
// result lies outside that range. So a whole formula is written as it reads and checked once, at its end:
//
//   const CheckedSize end = CheckedSize(offset) + CheckedSize(rows) * row_bytes;
//   if (!end.AtMost(file_size)) return InvalidArgument(...);
//   use(end.value());

#include <cstdint>
#include <cstdlib>
#include <limits>

namespace ferry {

class CheckedSize {
 public:
  static constexpr uint64_t kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

  // Values above kMax are invalid; so are converted negative numbers.
  constexpr CheckedSize(uint64_t value) : value_(value <= kMax ? value : kInvalid) {}

  constexpr bool valid() const { return value_ != kInvalid; }
  // Valid and <= limit.
  constexpr bool AtMost(uint64_t limit) const { return valid() && value_ <= limit; }
  // The value. Aborts the process when invalid: the caller must check first.
  constexpr uint64_t value() const {
    if (!valid()) std::abort();
    return value_;
  }
  constexpr uint64_t value_or(uint64_t other) const { return valid() ? value_ : other; }

  // The next multiple of `alignment`; invalid when that is 0.
  constexpr CheckedSize AlignedUp(uint64_t alignment) const {
    if (!valid() || alignment == 0) return Invalid();
    const uint64_t over = value_ % alignment;
    return over == 0 ? *this : *this + CheckedSize(alignment - over);
  }

  friend constexpr CheckedSize operator+(CheckedSize a, CheckedSize b) {
    if (!a.valid() || !b.valid()) return Invalid();
    return CheckedSize(a.value_ + b.value_);  // both <= 2^63 - 1: the sum does not wrap
  }
  friend constexpr CheckedSize operator-(CheckedSize a, CheckedSize b) {
    if (!a.valid() || !b.valid() || b.value_ > a.value_) return Invalid();
    return CheckedSize(a.value_ - b.value_);
  }
  friend constexpr CheckedSize operator*(CheckedSize a, CheckedSize b) {
    if (!a.valid() || !b.valid()) return Invalid();
    if (b.value_ != 0 && a.value_ > kMax / b.value_) return Invalid();
    return CheckedSize(a.value_ * b.value_);
  }

 private:
  static constexpr uint64_t kInvalid = std::numeric_limits<uint64_t>::max();
  static constexpr CheckedSize Invalid() { return CheckedSize(kInvalid); }

  uint64_t value_;
};

}  // namespace ferry
