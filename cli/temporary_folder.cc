#include "cli/temporary_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace ferry {
namespace {

constexpr char kPrefix[] = "ferry-run-";
constexpr int kAttempts = 10;

// The lock of a folder, if nobody has it. Locks go with their process, whatever ended it.
UniqueFd Lock(const std::string& folder) {
  UniqueFd descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!descriptor.valid() || ::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0) return UniqueFd();
  return descriptor;
}

void RemoveLeftFolders(const std::filesystem::path& parent) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(parent, error), end; !error && entry != end; entry.increment(error)) {
    if (!entry->path().filename().string().starts_with(kPrefix)) continue;
    struct stat about;
    if (::lstat(entry->path().c_str(), &about) != 0 || !S_ISDIR(about.st_mode) || about.st_uid != ::geteuid()) continue;
    const UniqueFd lock = Lock(entry->path());
    std::error_code ignored;
    if (lock.valid()) std::filesystem::remove_all(entry->path(), ignored);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<TemporaryFolder>> TemporaryFolder::Create() {
  const char* const variable = std::getenv("TMPDIR");
  const std::string parent = variable == nullptr || *variable == '\0' ? "/tmp" : variable;
  RemoveLeftFolders(parent);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string path = parent + "/" + kPrefix + "XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) {
      return FailedPrecondition("cannot make a folder in %s: %s; set TMPDIR to a folder that can be written to", parent,
                                std::strerror(errno));
    }
    UniqueFd lock = Lock(path);
    struct stat locked, there;
    // Another start may have taken it for one that was left, in the moment before it was locked.
    if (!lock.valid() || ::fstat(lock.get(), &locked) != 0 || ::stat(path.c_str(), &there) != 0 ||
        locked.st_ino != there.st_ino) {
      continue;
    }
    return std::unique_ptr<TemporaryFolder>(new TemporaryFolder(path, std::move(lock)));
  }
  return FailedPrecondition("cannot keep a folder in %s: other starts of ferry remove it", parent);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryFolder::File(const std::string& name) {
  const std::string file = (path_ / name).string();
  files_.push_back(std::make_unique<RemovedOnSignal>(file));
  return file;
}

}  // namespace ferry
