#pragma once

// Processes that `ferry` starts and supervises: Ferry's other programs, which lie beside it.

#include <sys/types.h>

#include <string>
#include <vector>

#include "common/status.h"

namespace ferry {

// The path of one of Ferry's programs. NotFound: it is not beside this one.
absl::StatusOr<std::string> Beside(const char* name);

// Starts `binary`, which ends when the calling thread does. Its standard output goes to standard error, so that ours holds
// results alone. -1 and errno: the system refuses another process.
pid_t Spawn(const std::string& binary, const std::vector<std::string>& arguments);

// "exited with 1", "was killed by signal 9 (Killed)", of a status of waitpid.
std::string HowItEnded(int status);

// Why no further start of a process can help that ended so after its `starts`th start; empty: one may.
std::string WhyForGood(int status, int starts);

}  // namespace ferry
