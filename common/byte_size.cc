#include "common/byte_size.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <string_view>

namespace ferry {
namespace {

struct Unit {
  std::string_view letter, binary, decimal;
  uint64_t power_of_1024, power_of_1000;
};
constexpr std::array<Unit, 5> kUnits = {{{"", "b", "b", 1, 1},
                                         {"k", "kib", "kb", uint64_t{1} << 10, 1'000},
                                         {"m", "mib", "mb", uint64_t{1} << 20, 1'000'000},
                                         {"g", "gib", "gb", uint64_t{1} << 30, 1'000'000'000},
                                         {"t", "tib", "tb", uint64_t{1} << 40, 1'000'000'000'000}}};

}  // namespace

absl::StatusOr<int64_t> ParseByteSize(const std::string& text) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  std::string unit;
  for (const char* c = rest; c < end; ++c) unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  const auto found = std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& known) {
    return unit == known.letter || unit == known.binary || unit == known.decimal;
  });
  const uint64_t factor = found == kUnits.end() ? 0 : unit == found->decimal ? found->power_of_1000 : found->power_of_1024;
  if (error != std::errc() || factor == 0 || value > uint64_t{INT64_MAX} / factor) {
    return InvalidArgument("'%s' is no size: want a whole number, alone or with KiB, MiB, GiB, TiB, kB, MB, GB or TB", text);
  }
  return static_cast<int64_t>(value * factor);
}

}  // namespace ferry
