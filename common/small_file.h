#pragma once

// Files that a flag names and that are read whole: keys, certificates, templates, grammars.

#include <cstddef>
#include <string>

#include "common/status.h"

namespace ferry {

// The whole file. A pipe, such as a shell's <(command), gets ten seconds to bring it. NotFound. FailedPrecondition: it cannot be
// read, or is a folder. InvalidArgument: more than `max_bytes`, as an endless device has. DeadlineExceeded: a pipe brings
// nothing.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes = size_t{64} << 10);

}  // namespace ferry
