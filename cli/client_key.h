#pragma once

// The key with which a command calls a server.

#include <string>

#include "common/status.h"

namespace ferry {

// The variable FERRY_API_KEY, which other users of the machine cannot see as they see command lines; empty: it is not set.
// InvalidArgument: it has other characters than keys have, which neither gRPC nor HTTP would carry.
absl::StatusOr<std::string> KeyFromEnvironment();

}  // namespace ferry
