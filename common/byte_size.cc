#include "common/byte_size.h"

#include <cctype>
#include <charconv>

namespace ferry {

absl::StatusOr<int64_t> ParseByteSize(const std::string& text) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  std::string unit;
  for (const char* c = rest; c < end; ++c) unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  int shift = -1;
  if (unit.empty() || unit == "b") shift = 0;
  if (unit == "k" || unit == "kib") shift = 10;
  if (unit == "m" || unit == "mib") shift = 20;
  if (unit == "g" || unit == "gib") shift = 30;
  if (unit == "t" || unit == "tib") shift = 40;
  if (error != std::errc() || shift < 0 || value > (uint64_t{INT64_MAX} >> shift)) {
    return InvalidArgument("'%s' is no size: want auto, 0, or a number with KiB, MiB or GiB", text);
  }
  return static_cast<int64_t>(value << shift);
}

}  // namespace ferry
