#include "common/escaped.h"

#include <cstdint>

#include "absl/strings/str_format.h"

namespace ferry {
namespace {

struct Decoded {
  uint32_t character = 0;
  size_t bytes = 0;  // 0: no UTF-8
};

// The character at the front of `text`, which is not empty.
Decoded Decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1};
  const size_t bytes = byte(0) >= 0xF0 && byte(0) < 0xF5   ? 4
                       : byte(0) >= 0xE0 && byte(0) < 0xF0 ? 3
                       : byte(0) >= 0xC2 && byte(0) < 0xE0 ? 2
                                                           : 0;
  if (bytes == 0 || text.size() < bytes) return {};
  uint32_t character = byte(0) & (0xFF >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    character = character << 6 | (byte(i) & 0x3F);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = character >= 0xD800 && character < 0xE000;
  return character < kLeast[bytes] || surrogate || character > 0x10FFFF ? Decoded() : Decoded{character, bytes};
}

bool Steers(uint32_t c) {
  return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x200E || c == 0x200F || c == 0x061C || (c >= 0x2028 && c <= 0x202E) ||
         (c >= 0x2066 && c <= 0x2069) || c == 0xFEFF;
}

}  // namespace

std::string Escaped(std::string_view text, size_t max_bytes) {
  std::string result;
  const bool whole = text.size() <= max_bytes;
  for (std::string_view rest = text.substr(0, max_bytes); !rest.empty();) {
    const Decoded next = Decode(rest);
    const size_t bytes = next.bytes == 0 ? 1 : next.bytes;
    if (next.bytes == 0 || (Steers(next.character) && next.character < 0x80)) {
      absl::StrAppendFormat(&result, "\\x%02x", static_cast<uint8_t>(rest[0]));
    } else if (Steers(next.character)) {
      absl::StrAppendFormat(&result, "\\u%04x", next.character);
    } else {
      result.append(rest.substr(0, bytes));
    }
    rest.remove_prefix(bytes);
  }
  if (!whole) result += "...";
  return result;
}

}  // namespace ferry
