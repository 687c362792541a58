#pragma once

// Bounds which files a process may open, by Landlock (Linux 5.13): what somebody who has got hold of it could read or change.

#include <string>
#include <vector>

#include "common/status.h"

namespace ferry {

// Files and folders with all that is in them. Those that do not exist are left out.
struct FileAccess {
  std::vector<std::string> readable;
  std::vector<std::string> writable;  // and readable
};

// From now on the calling thread, and those that it starts, can open nothing else by name, and execute nothing. What is open
// stays open; sockets are no files. False: this kernel has no Landlock, and nothing is bounded. Internal: it refused the rules.
absl::StatusOr<bool> BoundFileAccess(const FileAccess& access);
bool HasLandlock();

}  // namespace ferry
