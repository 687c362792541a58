#include "common/program.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>
#include <system_error>

#include "absl/synchronization/mutex.h"
#include "common/library_threads.h"
#include "common/signal_cleanup.h"

namespace ferry {
namespace {

std::atomic<int> output_error{0};  // errno of the first write that failed; 0: none

// A file that is opened next would get the number of a closed descriptor, and results would go into it.
void OpenStandardDescriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) >= 0 || errno != EBADF) continue;
    // Opened the wrong way round, so that reading or writing fails as it does with a closed one. Messages need no reader.
    const int flags = descriptor == STDOUT_FILENO ? O_RDONLY : O_WRONLY;
    [[maybe_unused]] const int opened = open("/dev/null", flags);  // the lowest free number is the closed one's
  }
}

// stdio forgets the reason when a write fails inside printf: another byte meets the same one.
int ReasonOfFailure() { return write(STDOUT_FILENO, "\n", 1) < 0 ? errno : EIO; }

int RunGuarded(const char* name, const std::function<int()>& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: %s: not enough memory\n", name);
  } catch (const std::system_error& error) {
    const bool threads = error.code() == std::errc::resource_unavailable_try_again;
    std::fprintf(
        stderr, "error: %s: %s%s\n", name, error.what(),
        threads ? ": the system refuses another thread; raise the limit of processes (ulimit -u, pids.max of the cgroup)" : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s: %s\n", name, error.what());
  }
  return 1;
}

}  // namespace

absl::Status FlushOutput() {
  if (output_error == 0) {
    errno = 0;
    const bool flushed = std::fflush(stdout) == 0;
    const int error = errno;
    if (flushed && std::ferror(stdout) == 0) return absl::OkStatus();
    output_error = !flushed && error != 0 ? error : ReasonOfFailure();
  }
  return DataLoss("standard output could not be written: %s", std::strerror(output_error));
}

bool OutputReaderIsGone() { return output_error == EPIPE; }

int RunProgram(const char* name, const std::function<int()>& body) {
  OpenStandardDescriptors();
  const bool pipe_ignored = signal(SIGPIPE, SIG_IGN) == SIG_IGN;
  signal(SIGXFSZ, SIG_IGN);
  InstallSignalCleanup();
  EndWhereALibraryLacksAThread();
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  int code = RunGuarded(name, body);
  std::cout.flush();
  const bool said = output_error != 0;
  const absl::Status flushed = FlushOutput();
  if (OutputReaderIsGone() && !pipe_ignored) {
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
  }
  if (!flushed.ok()) {
    if (!said || pipe_ignored) std::fprintf(stderr, "error: %s\n", std::string(flushed.message()).c_str());
    code = code == 0 ? 1 : code;
  }
  return code;
}

}  // namespace ferry
