#include "cli/child_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>

#include "common/exit_codes.h"

namespace ferry {

absl::StatusOr<std::string> Beside(const char* name) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path path = self.parent_path() / name;
  if (error || access(path.c_str(), X_OK) != 0) {
    return NotFound("%s is not beside %s: build or install all of Ferry's programs together", name, self.string());
  }
  return path.string();
}

pid_t Spawn(const std::string& binary, const std::vector<std::string>& arguments) {
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died before the request above
  setpgid(0, 0);                      // a Ctrl-C at the terminal is ours to pass on, as a drain
  for (const int signal : {SIGPIPE, SIGXFSZ}) ::signal(signal, SIG_DFL);  // what this process ignores, others need not
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  execv(argv[0], argv.data());
  std::fprintf(stderr, "error: cannot run %s: %s\n", argv[0], std::strerror(errno));
  _exit(kExitNoProgram);
}

std::string HowItEnded(int status) {
  if (WIFEXITED(status)) return absl::StrFormat("exited with %d", WEXITSTATUS(status));
  if (WIFSIGNALED(status)) return absl::StrFormat("was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return "ended";
}

std::string WhyForGood(int status, int starts) {
  switch (WIFEXITED(status) ? WEXITSTATUS(status) : 0) {
    case kExitCannotRun:
      return "cannot run as it was told to";
    case kExitLacksRoom:
      // At a later start the process before it may still hold what is missing.
      return starts == 1 ? "cannot run as it was told to: memory, threads or descriptors do not suffice" : "";
    case kExitModelChanged:
      return "cannot load the model, whose file was changed: start anew with it";
    case kExitNoProgram:
      return "cannot be executed: install all of Ferry's programs again";
    default:
      return "";
  }
}

}  // namespace ferry
