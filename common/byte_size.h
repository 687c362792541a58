#pragma once

// Byte sizes as text.

#include <cstdint>
#include <string>

#include "common/status.h"

namespace ferry {

// Parses "4GiB", "512MiB", "16k", "1000000", "2GB": a whole number and a unit, in upper or lower case. KiB and k are 1024, kB is
// 1000. InvalidArgument: any other text, or a size above 2^63 - 1.
absl::StatusOr<int64_t> ParseByteSize(const std::string& text);

}  // namespace ferry
