#pragma once

// A folder of this process's own that does not stay behind. The destructor removes it, or a signal that can be caught
// (common/signal_cleanup.h); if the process was killed, the next start does. Nobody else may enter it.

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/signal_cleanup.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

class TemporaryFolder {
 public:
  // In $TMPDIR, or in /tmp. Also removes the folders there that processes which are gone have left. FailedPrecondition: $TMPDIR
  // is no folder, cannot be written to, or is too long for the paths of sockets in it.
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Create();
  // In $XDG_RUNTIME_DIR where that can be, which is the place for sockets, and otherwise as above.
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> CreateForSockets();
  ~TemporaryFolder();

  const std::filesystem::path& path() const { return path_; }
  // The path of a file in it, which is removed with it.
  std::string File(const std::string& name);

 private:
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> CreateIn(const std::string& given);
  TemporaryFolder(std::filesystem::path path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)), removed_(path_) {}

  const std::filesystem::path path_;
  const UniqueFd lock_;  // on the folder, until this process ends
  const RemovedOnSignal removed_;
  std::vector<std::unique_ptr<RemovedOnSignal>> files_;
};

}  // namespace ferry
