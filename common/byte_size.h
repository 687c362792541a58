#pragma once

// Byte sizes as text.

#include <cstdint>
#include <string>

#include "common/status.h"

namespace ferry {

// Parses "4GiB", "512MiB", "16k", "1000000": a number and a power of 1024, in upper or lower case. InvalidArgument: any other
// text, or a size above 2^63 - 1.
absl::StatusOr<int64_t> ParseByteSize(const std::string& text);

}  // namespace ferry
