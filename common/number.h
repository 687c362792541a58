#pragma once

// Numbers as people type them. Every number of a command line goes through here: it is taken exactly, or refused.

#include <cstdint>
#include <string>
#include <string_view>

#include "common/status.h"

namespace ferry {

// Decimal digits, behind a minus sign where `min` is negative, and nothing else: no spaces, no plus sign, no other base, so
// "010" is ten and "0x10" is refused. `units`: k, m or g behind the digits multiplies by 2^10, 2^20 or 2^30 ("32k" tokens).
// InvalidArgument: "'0x10', want a whole number from 1 to 64".
absl::StatusOr<int64_t> ParseInteger(std::string_view text, int64_t min, int64_t max, bool units = false);
absl::StatusOr<uint64_t> ParseUnsigned(std::string_view text, uint64_t max);

// A decimal fraction, "0.8" or "1e-3", from `min` to `max`; neither "inf" nor "nan". InvalidArgument as above.
absl::StatusOr<double> ParseDecimal(std::string_view text, double min, double max);

}  // namespace ferry
