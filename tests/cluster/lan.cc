#include "tests/cluster/lan.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "tests/cluster/cluster.h"
#include "tests/testing/source_path.h"

namespace ferry {
namespace {

constexpr absl::Duration kSetupTimeout = absl::Seconds(20);
// 192.0.2.0/24 is kept for examples (RFC 5737): no real network has these addresses.
constexpr char kNetwork[] = "192.0.2.";

constexpr char kOwnTmp[] = "{ test -e /tmp/is-own || { echo 'mounts cannot be made' >&2; false; }; }";

std::string ReadAll(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// A TAP device keeps so many frames for the thread that carries them; a busy machine lets it wait.
constexpr int kTapFrames = 8192;
constexpr uint64_t kCableSeed = 15;

std::string PortOf(const Host& host) { return "port" + std::string(absl::StripPrefix(host.address(), kNetwork)); }
// What gives a host's end of its cable the host's address.
std::string UpOf(const Host& host) {
  return absl::StrFormat("ip address add %s/24 dev eth0 && ip link set eth0 up", host.address());
}

}  // namespace

// -------------------------------------------------------------------------------------------------------------------
// shell

absl::StatusOr<std::unique_ptr<Shell>> Shell::Start(int namespaces) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return absl::ErrnoToStatus(errno, "socketpair");
  const UniqueFd output(ends[0]);
  UniqueFd input(ends[1]);
  // A fork into new namespaces. Between fork and exec the child calls only functions that are safe beside other threads.
  const long pid = ::syscall(SYS_clone, namespaces | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
  if (pid < 0) return absl::ErrnoToStatus(errno, "namespaces cannot be made");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(output.get(), STDIN_FILENO);
    ::execl("/bin/sh", "sh", nullptr);
    ::_exit(127);
  }
  return std::unique_ptr<Shell>(new Shell(static_cast<pid_t>(pid), std::move(input)));
}

Shell::~Shell() { Kill(); }

absl::Status Shell::Type(const std::string& line) {
  const std::string text = line + "\n";
  if (::send(input_.get(), text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size())) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "the shell does not read");
}

void Shell::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

// -------------------------------------------------------------------------------------------------------------------
// command, host

std::string Command::out() const { return ReadAll(files_ + ".out"); }
std::string Command::err() const { return ReadAll(files_ + ".err"); }

absl::StatusOr<int> Command::Wait(absl::Duration timeout) const {
  int code = -1;
  if (Eventually(timeout, [&] { return absl::SimpleAtoi(ReadAll(files_ + ".rc"), &code); })) return code;
  return DeadlineExceeded("it still runs after %s, and said: %s", absl::FormatDuration(timeout), err());
}

absl::StatusOr<Command> Host::Start(const std::string& command) {
  const std::string files = absl::StrFormat("/tmp/command-%d-%d", ::getpid(), ++num_commands_);
  RETURN_IF_ERROR(shell_->Type(absl::StrFormat("( (%s) >%s.out 2>%s.err; echo $? >%s.new; mv %s.new %s.rc) &", command, files,
                                               files, files, files, files)));
  // The host's files as this process sees them.
  return Command(absl::StrFormat("/proc/%d/root%s", shell_->pid(), files));
}

std::string Host::Contents(const std::string& path) const {
  return ReadAll(absl::StrFormat("/proc/%d/root%s", shell_->pid(), path));
}

absl::StatusOr<std::string> Host::Run(const std::string& command, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const Command started, Start(command));
  const absl::StatusOr<int> code = started.Wait(timeout);
  if (!code.ok()) return Annotate(code.status(), command);
  if (*code != 0) return Internal("%s: exit code %d: %s", command, *code, started.err());
  return started.out();
}

// -------------------------------------------------------------------------------------------------------------------
// network

absl::StatusOr<std::unique_ptr<Lan>> Lan::Create() {
  absl::StatusOr<std::unique_ptr<Shell>> shell = Shell::Start(CLONE_NEWNET | CLONE_NEWNS);
  if (!shell.ok()) return FailedPrecondition("this process may not make network namespaces: %s", shell.status().message());
  std::unique_ptr<Host> console(new Host(*std::move(shell), std::string(kNetwork) + "0"));
  // A /tmp of its own, because that is where commands leave what they say.
  RETURN_IF_ERROR(console->shell_->Type("mount --make-rprivate / && mount -t tmpfs tmpfs /tmp && touch /tmp/is-own"));
  const absl::StatusOr<std::string> bridge =
      console->Run(std::string(kOwnTmp) + " && ip link add switch type bridge && ip link set switch up", kSetupTimeout);
  if (!bridge.ok()) return FailedPrecondition("a network cannot be made: %s", bridge.status().message());
  return std::unique_ptr<Lan>(new Lan(std::move(console)));
}

absl::StatusOr<std::unique_ptr<Host>> Lan::AddHost() {
  ASSIGN_OR_RETURN(std::unique_ptr<Shell> shell,
                   Shell::Start(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS));
  std::unique_ptr<Host> host(new Host(std::move(shell), kNetwork + std::to_string(++num_hosts_)));
  // If Ferry lies in this machine's /tmp, that part stays visible in the new /tmp.
  std::string mounts =
      "mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs tmpfs /dev/shm && mkdir /dev/shm/old && "
      "mount --rbind /tmp /dev/shm/old && mount -t tmpfs tmpfs /tmp";
  for (const std::string& folder : {SourcePath(""), Programs()}) {
    if (!folder.starts_with("/tmp/")) continue;
    absl::StrAppendFormat(&mounts, " && mkdir -p %s && mount --bind /dev/shm/old%s %s", folder, folder.substr(4), folder);
  }
  RETURN_IF_ERROR(host->shell_->Type(mounts + " && umount -l /dev/shm/old && rmdir /dev/shm/old && touch /tmp/is-own"));
  RETURN_IF_ERROR(host->shell_->Type(absl::StrFormat("cd %s; export XDG_CACHE_HOME=/tmp/cache TMPDIR=/tmp", Programs())));
  const std::string port = PortOf(*host);
  const std::string cable = absl::StrFormat("ip link add %s type veth peer name eth0 netns %d && ip link set %s master switch up",
                                            port, host->shell_->pid(), port);
  RETURN_IF_ERROR(switch_->Run(cable, kSetupTimeout).status());
  RETURN_IF_ERROR(host->Run(absl::StrFormat("%s && ip link set lo up && %s", kOwnTmp, UpOf(*host)), kSetupTimeout).status());
  return host;
}

absl::StatusOr<std::unique_ptr<BadCable>> Lan::Spoil(const Host& host) {
  const std::string port = PortOf(host);
  RETURN_IF_ERROR(switch_->Run("ip link delete " + port, kSetupTimeout).status());
  ASSIGN_OR_RETURN(std::unique_ptr<BadCable> cable, BadCable::Lay(switch_->shell_->pid(), port, "line", kCableSeed));
  const pid_t pid = host.shell_->pid();
  const std::string plug = absl::StrFormat(
      "ip link set %s txqueuelen %d master switch up && ip link set line txqueuelen %d netns %d name eth0 && nsenter -t %d -n sh "
      "-c '%s'",
      port, kTapFrames, kTapFrames, pid, pid, UpOf(host));
  RETURN_IF_ERROR(switch_->Run(plug, kSetupTimeout).status());
  return cable;
}

absl::Status Lan::Narrow(const Host& host, int megabits) {
  // A burst of two packets, so that short messages are held up as well.
  const std::string limit = absl::StrFormat("root tbf rate %dmbit burst 3k latency 400ms", megabits);
  for (const std::string& command : {absl::StrFormat("tc qdisc add dev %s %s", PortOf(host), limit),
                                     absl::StrFormat("nsenter -t %d -n tc qdisc add dev eth0 %s", host.shell_->pid(), limit)}) {
    const absl::Status limited = switch_->Run(command, kSetupTimeout).status();
    if (!limited.ok()) return FailedPrecondition("cables cannot be made narrow here: %s", limited.message());
  }
  return absl::OkStatus();
}

absl::Status Lan::Plug(const Host& host, bool in) {
  return switch_->Run(absl::StrFormat("ip link set %s %s", PortOf(host), in ? "up" : "down"), kSetupTimeout).status();
}

}  // namespace ferry
