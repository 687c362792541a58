#pragma once

// Whether this process may use AMX. Linux gives a process the tile registers only when it asks for them.

#include "common/status.h"

namespace ferry {

// Asks the system once a process and tries a product of tiles, whose result is compared: virtual machines exist that show the
// processor's flags and refuse the instructions. The answer holds for all threads and is kept.
//
// FailedPrecondition: the processor or the build has no AMX, the system refuses them (an old kernel, a seccomp filter), or
// the trial gave something else; the message says which.
absl::Status CheckAmx();

}  // namespace ferry
