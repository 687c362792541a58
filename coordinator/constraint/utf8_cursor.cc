#include "coordinator/constraint/utf8_cursor.h"

#include <algorithm>

namespace ferry::constraint {

absl::StatusOr<uint32_t> Utf8Cursor::Next() {
  if (AtEnd()) return InvalidArgument("the text ends at byte %d, in the middle of something", position_);
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text_[position_ + i]); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) {
    ++position_;
    return lead;
  }
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  uint32_t value = lead & (0x7F >> length);
  bool valid = lead >= 0xC2 && lead <= 0xF4 && position_ + length <= text_.size();
  for (size_t i = 1; valid && i < length; ++i) {
    valid = (byte(i) & 0xC0) == 0x80;
    value = value << 6 | (byte(i) & 0x3F);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (!valid || value < kLeast[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
    return InvalidArgument("byte %d is not UTF-8", position_);
  }
  position_ += length;
  return value;
}

absl::StatusOr<uint32_t> Utf8Cursor::Hex(int min, int max) {
  uint32_t value = 0;
  int digits = 0;
  for (; digits < max && !AtEnd(); ++digits, ++position_) {
    const char c = text_[position_];
    if (c >= '0' && c <= '9') {
      value = value << 4 | (c - '0');
    } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
      value = value << 4 | ((c | 0x20) - 'a' + 10);
    } else {
      break;
    }
  }
  if (digits < min) return InvalidArgument("at byte %d: %d hexadecimal digits, want %d", position_, digits, min);
  return value;
}

bool Utf8Cursor::Number(int64_t* number) {
  constexpr int64_t kLarge = int64_t{1} << 40;
  const size_t begin = position_;
  for (*number = 0; !AtEnd() && Peek() >= '0' && Peek() <= '9'; ++position_) {
    *number = std::min(kLarge, *number * 10 + (Peek() - '0'));
  }
  return position_ > begin;
}

absl::StatusOr<bool> Utf8Cursor::Bounds(int32_t limit, int32_t* min, int32_t* max) {
  const size_t begin = position_;
  int64_t low = 0, high = -1;
  bool found = Take('{') && Number(&low);
  if (found && Take(',')) {
    if (!Looks("}")) found = Number(&high);
  } else {
    high = low;
  }
  if (!found || !Take('}')) {
    position_ = begin;
    return false;
  }
  if (low > limit || high > limit) return InvalidArgument("at byte %d: a repetition of more than %d", begin, limit);
  if (high >= 0 && high < low) return InvalidArgument("at byte %d: {m,n} with n below m", begin);
  *min = static_cast<int32_t>(low);
  *max = static_cast<int32_t>(high);
  return true;
}

absl::Status CheckUtf8(std::string_view text) {
  for (Utf8Cursor cursor(text); !cursor.AtEnd();) RETURN_IF_ERROR(cursor.Next().status());
  return absl::OkStatus();
}

}  // namespace ferry::constraint
