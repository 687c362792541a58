#include "common/temporary_folder.h"

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
constexpr size_t kLongestParent = 68;  // "/ferry-run-XXXXXX/worker-1234567" follows, and a socket's path has at most 100 bytes

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

absl::StatusOr<std::unique_ptr<TemporaryFolder>> TemporaryFolder::CreateForSockets() {
  if (const char* const runtime = std::getenv("XDG_RUNTIME_DIR"); runtime != nullptr && runtime[0] == '/') {
    if (absl::StatusOr<std::unique_ptr<TemporaryFolder>> folder = CreateIn(runtime); folder.ok()) return folder;
  }
  return Create();
}

absl::StatusOr<std::unique_ptr<TemporaryFolder>> TemporaryFolder::Create() {
  const char* const variable = std::getenv("TMPDIR");
  return CreateIn(variable == nullptr || *variable == '\0' ? "/tmp" : variable);
}

absl::StatusOr<std::unique_ptr<TemporaryFolder>> TemporaryFolder::CreateIn(const std::string& given) {
  std::error_code error;
  const std::string parent = std::filesystem::absolute(given, error).string();  // other processes are told the path
  if (parent.size() > kLongestParent) {
    return FailedPrecondition("%s has %d bytes, and sockets in it want at most %d; set TMPDIR to a shorter path", parent,
                              parent.size(), kLongestParent);
  }
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
