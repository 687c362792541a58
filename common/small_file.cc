#include "common/small_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/deadline.h"
#include "common/unique_fd.h"

namespace ferry {
namespace {

constexpr absl::Duration kPipePatience = absl::Seconds(10);

absl::Status CannotRead(const std::string& path, int error) {
  const char* const reason = std::strerror(error);
  if (error == ENOENT || error == ENOTDIR) return NotFound("cannot read '%s': %s", path, reason);
  return FailedPrecondition("cannot read '%s': %s", path, reason);
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return CannotRead(path, errno);
  const Deadline deadline = Deadline::In(kPipePatience);
  std::string text(max_bytes + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + size, text.size() - size);
    if (got == 0) break;
    if (got > 0) {
      size += static_cast<size_t>(got);
    } else if (errno == EAGAIN) {
      if (deadline.Passed()) {
        return DeadlineExceeded("'%s' has not come to its end within %s", path, absl::FormatDuration(kPipePatience));
      }
      pollfd poll = {file.get(), POLLIN, 0};
      const int64_t left = std::max<int64_t>(1, absl::ToInt64Milliseconds(deadline.Remaining()));
      ::poll(&poll, 1, static_cast<int>(left));
    } else if (errno != EINTR) {
      return CannotRead(path, errno);
    }
  }
  if (size > max_bytes) return InvalidArgument("'%s' has more than %d bytes", path, max_bytes);
  text.resize(size);
  return text;
}

}  // namespace ferry
