#include "common/file_access.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr uint64_t kTruncate = 1ULL << 14;  // LANDLOCK_ACCESS_FS_TRUNCATE, which older headers lack
constexpr uint64_t kReadFile = LANDLOCK_ACCESS_FS_READ_FILE;
constexpr uint64_t kWriteFile = LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate;
constexpr uint64_t kRead = kReadFile | LANDLOCK_ACCESS_FS_READ_DIR;
constexpr uint64_t kWrite = kRead | kWriteFile | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
                            LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_SOCK;
constexpr uint64_t kAll = kWrite | LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                          LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;
constexpr int kAbiWithTruncate = 3;

absl::Status Failed(const char* what) { return Internal("Landlock: %s: %s", what, std::strerror(errno)); }

// 0 or less: this kernel has no Landlock.
long LandlockAbi() { return ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION); }

absl::Status Allow(int ruleset, const std::string& path, uint64_t rights) {
  const UniqueFd place(::open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat info = {};
  if (!place.valid() || ::fstat(place.get(), &info) != 0) return absl::OkStatus();
  if (!S_ISDIR(info.st_mode)) rights &= kReadFile | kWriteFile;  // the kernel wants no others of a file
  const landlock_path_beneath_attr rule = {.allowed_access = rights, .parent_fd = place.get()};
  if (::syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0) return absl::OkStatus();
  return Failed(path.c_str());
}

}  // namespace

bool HasLandlock() { return LandlockAbi() >= 1; }

absl::StatusOr<bool> BoundFileAccess(const FileAccess& access) {
  const long abi = LandlockAbi();
  if (abi < 1) return false;
  const uint64_t known = abi >= kAbiWithTruncate ? kAll : kAll & ~kTruncate;
  const landlock_ruleset_attr handled = {.handled_access_fs = known};
  const UniqueFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &handled, sizeof(handled), 0)));
  if (!ruleset.valid()) return Failed("no rules can be made");
  for (const std::string& path : access.readable) RETURN_IF_ERROR(Allow(ruleset.get(), path, kRead));
  for (const std::string& path : access.writable) RETURN_IF_ERROR(Allow(ruleset.get(), path, kWrite & known));
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return Failed("no_new_privs");
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) return Failed("the rules cannot be put into force");
  return true;
}

}  // namespace ferry
