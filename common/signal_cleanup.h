#pragma once

// Files and folders that must not stay when a signal ends the process, where no destructor runs.

#include <string>

namespace ferry {

// While it lives, `path` (a file, or a folder without folders in it) is removed by a signal that ends the process. The destructor
// only forgets the path. Later ones are removed first, so a folder goes before the files in it. At most 32 at once and paths
// below 4096 bytes; what exceeds that is not removed. Thread-safe.
class RemovedOnSignal {
 public:
  explicit RemovedOnSignal(const std::string& path);
  ~RemovedOnSignal();
  RemovedOnSignal(const RemovedOnSignal&) = delete;
  RemovedOnSignal& operator=(const RemovedOnSignal&) = delete;

 private:
  int slot_ = -1;
};

// Handles every signal that would end the process, unless it is ignored: removes the registered paths, and lets the signal end
// the process as it would have. Once, before other threads exist.
void InstallSignalCleanup();

// Removes the registered paths. For a caller that is about to call _exit. Async-signal-safe.
void RemoveRegisteredPaths();

}  // namespace ferry
