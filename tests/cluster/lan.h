#pragma once

// Several hosts on one machine, made of Linux namespaces: each has a network of its own with one link to a common switch, and
// its own processes, /tmp and /dev/shm, so that nothing but the network joins them. The switch has a network of its own as well:
// nothing reaches the machine's, nor comes from there. All of it ends with the test program, however that ends.

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/status.h"
#include "common/unique_fd.h"
#include "tests/cluster/bad_cable.h"

namespace ferry {

// A shell that runs typed commands as the first process of new namespaces, which end with it.
class Shell {
 public:
  // `namespaces`: CLONE_NEW... flags. PermissionDenied: this process may not make them.
  static absl::StatusOr<std::unique_ptr<Shell>> Start(int namespaces);
  ~Shell();

  pid_t pid() const { return pid_; }  // as this process sees it
  absl::Status Type(const std::string& line);
  void Kill();  // with everything that runs in its namespaces

 private:
  Shell(pid_t pid, UniqueFd input) : pid_(pid), input_(std::move(input)) {}

  pid_t pid_;
  UniqueFd input_;
};

// A command that runs on a host.
class Command {
 public:
  // Files on the host that hold what it says: `files`.out, .err and, at its end, .rc.
  explicit Command(std::string files) : files_(std::move(files)) {}

  std::string out() const;  // so far
  std::string err() const;
  // Its exit code. DeadlineExceeded: it still runs.
  absl::StatusOr<int> Wait(absl::Duration timeout) const;

 private:
  std::string files_;
};

class Host {
 public:
  const std::string& address() const { return address_; }

  // Runs a command in the folder of Ferry's programs.
  absl::StatusOr<Command> Start(const std::string& command);
  // What it printed. Internal: it did not succeed, with what it said; DeadlineExceeded.
  absl::StatusOr<std::string> Run(const std::string& command, absl::Duration timeout);
  // What a file on the host holds.
  std::string Contents(const std::string& path) const;
  // Ends all of its processes at once; the host is of no use afterwards.
  void PowerOff() { shell_->Kill(); }

 private:
  friend class Lan;
  Host(std::unique_ptr<Shell> shell, std::string address) : shell_(std::move(shell)), address_(std::move(address)) {}

  std::unique_ptr<Shell> shell_;
  const std::string address_;
  int num_commands_ = 0;
};

class Lan {
 public:
  // FailedPrecondition names what this machine lacks.
  static absl::StatusOr<std::unique_ptr<Lan>> Create();

  absl::StatusOr<std::unique_ptr<Host>> AddHost();
  // Unplugged, a host sends and hears nothing, and nobody is told.
  absl::Status Plug(const Host& host, bool in);
  // From now on the host's cable carries so many megabits a second each way. FailedPrecondition: this machine cannot limit it.
  absl::Status Narrow(const Host& host, int megabits);
  // Joins the host to the switch by a bad cable from now on, while nothing runs on it. FailedPrecondition: this machine has none.
  absl::StatusOr<std::unique_ptr<BadCable>> Spoil(const Host& host);

 private:
  explicit Lan(std::unique_ptr<Host> console) : switch_(std::move(console)) {}

  const std::unique_ptr<Host> switch_;
  int num_hosts_ = 0;
};

}  // namespace ferry
