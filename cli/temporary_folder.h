#pragma once

// A folder of this process's own in $TMPDIR that does not stay behind: the destructor removes it, signals that can be caught do
// (common/signal_cleanup.h), and of a process that was killed the next start removes it.

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
  // Also removes the folders that processes which are gone have left. FailedPrecondition: $TMPDIR is no folder, or cannot be
  // written to.
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Create();
  ~TemporaryFolder();

  const std::filesystem::path& path() const { return path_; }
  // The path of a file in it, which is removed with it.
  std::string File(const std::string& name);

 private:
  TemporaryFolder(std::filesystem::path path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)), removed_(path_) {}

  const std::filesystem::path path_;
  const UniqueFd lock_;  // on the folder, until this process ends
  const RemovedOnSignal removed_;
  std::vector<std::unique_ptr<RemovedOnSignal>> files_;
};

}  // namespace ferry
