#pragma once

// Files that a flag names and that are read whole: keys, certificates, templates, grammars.

#include <cstddef>
#include <string>

#include "common/status.h"

namespace ferry {

// The whole file. A pipe that has a writer, such as a shell's <(command), gets ten seconds to come to its end; a pipe without one
// is empty. NotFound. FailedPrecondition: it cannot be read, or is a folder. InvalidArgument: more than `max_bytes`, as an
// endless device has. DeadlineExceeded: the pipe's writer has not ended by then.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes = size_t{64} << 10);

}  // namespace ferry
