#pragma once

// Sizes as people write them.

#include <cstdint>
#include <string>

#include "common/status.h"

namespace ferry {

// "4GiB", "512MiB", "16k", "1000000": a number and a power of 1024, in any case. InvalidArgument: anything else, or above 2^63.
absl::StatusOr<int64_t> ParseByteSize(const std::string& text);

}  // namespace ferry
