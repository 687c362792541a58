#include "cli/supervisor.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "cli/child_process.h"
#include "cli/cluster_watch.h"
#include "cli/gateway_process.h"
#include "cli/restart_pause.h"
#include "common/deadline.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/temporary_folder.h"
#include "common/thread_limit.h"
#include "common/thread_pool.h"

namespace ferry {
namespace {

constexpr absl::Duration kProcessPoll = absl::Milliseconds(20);
constexpr absl::Duration kListenTimeout = absl::Seconds(30);
constexpr absl::Duration kTracePatience = absl::Minutes(1);  // to complete one, when nothing else is waited for
constexpr absl::Duration kFirstStartWord = absl::Milliseconds(1500);
// For a worker that the coordinator declared lost to end by itself. One that is stopped does not, nor one that hangs in its
// driver.
constexpr absl::Duration kLostGrace = absl::Seconds(1);

struct Child {
  std::vector<std::string> arguments;
  std::string what;
  pid_t pid = -1;
  Stopwatch running;
  Deadline start_again = Deadline::In(absl::ZeroDuration());
  RestartPause pause;
  int starts = 0;
  std::optional<Deadline> kill_at;  // it was told to end by then
};

class ProcessSupervisor final : public Supervisor {
 public:
  ProcessSupervisor(std::string coordinator_binary, std::string worker_binary, std::string gateway_binary,
                    std::optional<GatewayProcess> gateway, std::unique_ptr<TemporaryFolder> folder)
      : coordinator_binary_(std::move(coordinator_binary)),
        worker_binary_(std::move(worker_binary)),
        gateway_binary_(std::move(gateway_binary)),
        wanted_gateway_(std::move(gateway)),
        folder_(std::move(folder)),
        port_file_(folder_->File("port")),
        socket_(folder_->File("cluster")),
        api_socket_(folder_->File("api")) {}

  ~ProcessSupervisor() override {
    if (thread_.joinable()) Stop(absl::Seconds(2)).IgnoreError();
  }

  // One thread, which lives until this ends, forks every process: the death signal follows the thread, not the process.
  absl::Status Run(const ModelOptions& options, const std::vector<std::string>& devices) {
    trace_ = options.trace;
    ASSIGN_OR_RETURN(thread_, StartThread([this, options, devices] { Main(options, devices); }));
    const Stopwatch starting;
    bool said = false;
    while (starting.Elapsed() < kListenTimeout) {
      if (!said && starting.Elapsed() > kFirstStartWord) {
        spdlog::info("the coordinator opens {}", options.model);
        said = true;
      }
      {
        const std::lock_guard lock(mutex_);
        if (!address_.empty()) return absl::OkStatus();
        if (!health_.ok()) return health_;
      }
      absl::SleepFor(kProcessPoll);
    }
    return DeadlineExceeded("the coordinator did not listen within %s", absl::FormatDuration(kListenTimeout));
  }

  const std::string& address() const override { return address_; }

  absl::Status Health() override {
    const std::lock_guard lock(mutex_);
    return health_;
  }

  absl::Duration Silence() const override {
    const std::lock_guard lock(mutex_);
    return watch_ == nullptr ? absl::ZeroDuration() : watch_->Silence();
  }

  absl::Status Stop(absl::Duration grace) override {
    {
      const std::lock_guard lock(mutex_);
      grace_ = trace_.empty() ? grace : std::max(grace, kTracePatience);
    }
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    if (trace_.empty() || !coordinator_end_) return absl::OkStatus();
    if (WIFEXITED(*coordinator_end_) && WEXITSTATUS(*coordinator_end_) == 0) return absl::OkStatus();
    return DataLoss("--trace %s was not completed: the coordinator %s", trace_, HowItEnded(*coordinator_end_));
  }

 private:
  void Main(const ModelOptions& options, const std::vector<std::string>& devices) {
    coordinator_ = {.arguments = options.CoordinatorArguments(
                        options.coordinator_only ? std::max(options.workers, 1) : static_cast<int>(devices.size()),
                        ModelOptions::GpuBytes(devices), port_file_, socket_),
                    .what = "the coordinator"};
    if (wanted_gateway_) coordinator_.arguments.insert(coordinator_.arguments.end(), {"--api-socket", api_socket_});
    coordinator_.pid = Spawn(coordinator_binary_, coordinator_.arguments);
    if (coordinator_.pid < 0) {
      CannotStart(coordinator_);
      return;
    }
    while (!stop_) {
      if (!Reap()) break;
      if (workers_.empty() && address().empty()) LookForAddress(options, devices);
      for (Child& worker : workers_) {
        if (worker.pid > 0 && watch_ != nullptr && watch_->IsLost(worker.pid)) EndTheLost(worker);
        if (worker.pid < 0 && worker.start_again.Passed() && !Start(worker, worker_binary_)) {
          EndAll();
          return;
        }
      }
      if (gateway_ && gateway_->pid < 0 && gateway_->start_again.Passed() && !Start(*gateway_, gateway_binary_)) {
        EndAll();
        return;
      }
      absl::SleepFor(kProcessPoll);
    }
    EndAll();
  }

  void CannotStart(const Child& child) {
    const std::string reason = std::strerror(errno);
    const std::lock_guard lock(mutex_);
    health_ = ResourceExhausted(
        "%s cannot be started: %s; raise the limit of processes and threads (ulimit -u, pids.max of the cgroup)", child.what,
        reason);
  }

  void LookForAddress(const ModelOptions& options, const std::vector<std::string>& devices) {
    std::ifstream file(port_file_);
    int port = 0;
    if (!(file >> port) || port == 0) return;
    const std::string local = options.listen == "0.0.0.0" ? "127.0.0.1" : options.listen == "[::]" ? "[::1]" : options.listen;
    const std::string address = local + ":" + std::to_string(port);
    if (!options.coordinator_only) {
      for (size_t i = 0; i < devices.size(); ++i) {
        workers_.push_back({.arguments = options.WorkerArguments(static_cast<int>(i), devices[i], "unix:" + socket_),
                            .what = "worker " + std::to_string(i)});
      }
    }
    if (wanted_gateway_) {
      gateway_ = Child{.arguments = wanted_gateway_->arguments, .what = "the HTTP gateway"};
      gateway_->arguments.insert(gateway_->arguments.end(), {"--coordinator", "unix:" + api_socket_});
    }
    unlink(port_file_.c_str());  // it has served
    const std::lock_guard lock(mutex_);
    if (absl::StatusOr<std::unique_ptr<ClusterWatch>> watch = ClusterWatch::Start(socket_); watch.ok()) {
      watch_ = *std::move(watch);
    } else {
      health_ = watch.status();
    }
    address_ = address;
  }

  // Reap starts it again.
  static void EndTheLost(Child& worker) {
    if (!worker.kill_at) {
      spdlog::warn("{} is lost to the coordinator: ending it", worker.what);
      worker.kill_at = Deadline::In(kLostGrace);
      kill(worker.pid, SIGTERM);
    } else if (worker.kill_at->Passed()) {
      kill(worker.pid, SIGKILL);
    }
  }

  // False: it cannot be started, and health_ says so.
  bool Start(Child& child, const std::string& binary) {
    child.pid = Spawn(binary, child.arguments);
    if (child.pid < 0) CannotStart(child);
    child.running.Restart();
    child.kill_at.reset();
    ++child.starts;
    return child.pid >= 0;
  }

  // False when the coordinator is gone, or a worker cannot be started again.
  bool Reap() {
    int status = 0;
    for (Child& worker : workers_) {
      if (worker.pid < 0 || waitpid(worker.pid, &status, WNOHANG) != worker.pid) continue;
      worker.pid = -1;
      if (const std::string why = WhyForGood(status, worker.starts); !why.empty()) {
        const std::lock_guard lock(mutex_);
        health_ = FailedPrecondition("%s %s; its own words are above", worker.what, why);
        return false;
      }
      StartAgainLater(worker, status);
    }
    if (!ReapGateway()) return false;
    if (waitpid(coordinator_.pid, &status, WNOHANG) != coordinator_.pid) return true;
    coordinator_.pid = -1;
    const std::lock_guard lock(mutex_);
    // A command line or a model that the coordinator refused is the user's to mend: no matter for a second try.
    const bool cannot_run = WIFEXITED(status) && WEXITSTATUS(status) == kExitCannotRun;
    health_ = cannot_run ? FailedPrecondition("the coordinator cannot run as it was told to; its own words are above")
                         : Unavailable("the coordinator %s; its own words are above", HowItEnded(status));
    return false;
  }

  static void StartAgainLater(Child& child, int status) {
    const absl::Duration pause = child.pause.After(child.running.Elapsed());
    child.start_again = Deadline::In(pause);
    spdlog::warn("{} {}; starting it again{}", child.what, HowItEnded(status),
                 pause > absl::ZeroDuration() ? " in " + absl::FormatDuration(pause) : "");
  }

  // False when it cannot run and was asked for. However often it ends, the coordinator goes on.
  bool ReapGateway() {
    int status = 0;
    if (!gateway_ || gateway_->pid < 0 || waitpid(gateway_->pid, &status, WNOHANG) != gateway_->pid) return true;
    gateway_->pid = -1;
    if (gateway_->starts == 1 && WIFEXITED(status) && WEXITSTATUS(status) == kExitCannotRun) {
      gateway_.reset();
      if (!wanted_gateway_->required) {
        spdlog::warn("going on without HTTP, for the reason above; --http-port chooses another port, 0 none");
        return true;
      }
      const std::lock_guard lock(mutex_);
      health_ = FailedPrecondition("the HTTP gateway cannot run as it was told to; its own words are above");
      return false;
    }
    StartAgainLater(*gateway_, status);
    return true;
  }

  void EndAll() {
    absl::Duration grace;
    {
      const std::lock_guard lock(mutex_);
      grace = grace_;
    }
    const Deadline deadline = Deadline::In(grace);
    if (gateway_ && gateway_->pid > 0) kill(gateway_->pid, SIGTERM);  // it answers its open requests, while
    if (coordinator_.pid > 0) kill(coordinator_.pid, SIGTERM);        // the coordinator drains and tells the workers
    if (coordinator_.pid > 0) coordinator_end_ = WaitFor(coordinator_, deadline);
    if (gateway_) WaitFor(*gateway_, std::max(deadline, Deadline::In(absl::Seconds(1))));
    for (Child& worker : workers_) {
      if (worker.pid > 0) kill(worker.pid, SIGTERM);
    }
    for (Child& worker : workers_) WaitFor(worker, std::max(deadline, Deadline::In(absl::Seconds(1))));
  }

  // How it ended; it is killed at the deadline.
  static int WaitFor(Child& child, Deadline deadline) {
    int status = 0;
    while (child.pid > 0 && waitpid(child.pid, &status, WNOHANG) == 0) {
      if (deadline.Passed()) {
        kill(child.pid, SIGKILL);
        waitpid(child.pid, &status, 0);
        break;
      }
      absl::SleepFor(kProcessPoll);
    }
    child.pid = -1;
    return status;
  }

  const std::string coordinator_binary_, worker_binary_, gateway_binary_;
  const std::optional<GatewayProcess> wanted_gateway_;
  const std::unique_ptr<TemporaryFolder> folder_;
  const std::string port_file_, socket_;
  const std::string api_socket_;        // the gateway's way to the coordinator, whatever others need to come in
  std::string trace_;                   // empty: none was asked for
  std::optional<int> coordinator_end_;  // as waitpid says it; of the thread, and of others once it has ended
  Child coordinator_;                   // of the thread alone
  std::vector<Child> workers_;          // of the thread alone
  std::optional<Child> gateway_;        // of the thread alone, once the coordinator's address is known
  std::thread thread_;
  std::atomic<bool> stop_{false};
  mutable std::mutex mutex_;
  std::unique_ptr<ClusterWatch> watch_;  // null until the coordinator listens; written as address_ is
  std::string address_;                  // written once under mutex_, before Run returns
  absl::Status health_;
  absl::Duration grace_ = absl::Seconds(2);
};

absl::StatusOr<std::unique_ptr<Supervisor>> StartProcesses(const ModelOptions& options, std::optional<GatewayProcess> gateway) {
  std::vector<std::string> devices;
  if (!options.coordinator_only) {
    ASSIGN_OR_RETURN(devices, options.Devices());
  }
  RETURN_IF_ERROR(options.Placement(1, 0).status());  // what the coordinator would refuse, said before it starts
  if (options.threads > MaxUsefulThreads()) {
    return InvalidArgument("-t is %d, want at most %d on this machine", options.threads, MaxUsefulThreads());
  }
  const int pool = options.threads > 0 ? options.threads : DefaultThreads();
  RETURN_IF_ERROR(CheckDescriptorsAllowed());
  RETURN_IF_ERROR(CheckThreadsCanStart(ClientThreads() + CoordinatorThreads() + pool + (gateway ? GatewayThreads() : 0) +
                                       static_cast<int>(devices.size()) * (WorkerThreads() + pool)));
  ASSIGN_OR_RETURN(std::string coordinator, Beside("ferry-coordinator"));
  ASSIGN_OR_RETURN(std::string worker, Beside("ferry-worker"));
  std::string gateway_binary;
  if (gateway) {
    ASSIGN_OR_RETURN(gateway_binary, Beside("ferry-gateway"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<TemporaryFolder> folder, TemporaryFolder::Create());
  auto supervisor =
      std::make_unique<ProcessSupervisor>(coordinator, worker, gateway_binary, std::move(gateway), std::move(folder));
  RETURN_IF_ERROR(supervisor->Run(options, devices));
  return supervisor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Start(const ModelOptions& options) {
  return StartProcesses(options, std::nullopt);
}

absl::StatusOr<std::unique_ptr<Supervisor>> StartWithGateway(const ModelOptions& options, const GatewayProcess& gateway) {
  return StartProcesses(options, gateway);
}

}  // namespace ferry
