// `ferry cluster-init`, `ferry cluster-token`, `ferry join`: the certificates by which hosts of a cluster know each other, and an
// expert host on one that joins.

#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/late_word.h"
#include "cli/restart_pause.h"
#include "common/command_line.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/log.h"
#include "common/rpc/join_cluster.h"
#include "common/small_file.h"
#include "common/tls/cluster_ca.h"

namespace ferry {
namespace {

constexpr absl::Duration kJoinTimeout = absl::Seconds(15);
constexpr absl::Duration kServerPoll = absl::Milliseconds(50);

struct ClusterOptions {
  std::string folder = DefaultClusterFolder();
  std::string coordinator, token;
  bool experts = false;
  std::string listen, model, memory, threads;  // of the expert host; empty: its defaults
  double valid_minutes = 60;
};

void AddFolder(CLI::App& app, ClusterOptions* options) {
  AddText(app, "--cluster-certs", options->folder, "folder of the certificates (default: ~/.config/ferry/cluster)");
}

absl::Status Init(const ClusterOptions& options) {
  RETURN_IF_ERROR(MakeClusterCa(options.folder));
  ASSIGN_OR_RETURN(const std::string ca, ReadSmallFile(CaCertificatePath(options.folder)));
  ASSIGN_OR_RETURN(const std::string fingerprint, CertificateFingerprint(ca));
  std::printf("the cluster's certificates are in %s; its CA has the fingerprint %s\n", options.folder.c_str(),
              fingerprint.c_str());
  return absl::OkStatus();
}

absl::Status Token(const ClusterOptions& options) {
  ASSIGN_OR_RETURN(const std::string token, MakeJoinToken(options.folder, absl::Minutes(options.valid_minutes)));
  std::printf("%s\n", token.c_str());
  return absl::OkStatus();
}

// Keeps an expert host running until Ctrl-C or SIGTERM.
absl::Status KeepExpertHost(const ClusterOptions& options) {
  std::atomic<bool> stop{false};
  ASSIGN_OR_RETURN(const auto interrupt, InterruptHandler::Start([&] { stop = true; }));
  ASSIGN_OR_RETURN(const std::string binary, Beside("ferry-expert-host"));
  std::vector<std::string> arguments = {"--coordinator", options.coordinator, "--cluster-certs", options.folder};
  for (const auto& [flag, value] : {std::pair("--listen", &options.listen), std::pair("--model", &options.model),
                                    std::pair("--memory", &options.memory), std::pair("--threads", &options.threads)}) {
    if (!value->empty()) arguments.insert(arguments.end(), {flag, *value});
  }
  RestartPause pause;
  for (int starts = 1; !stop; ++starts) {
    const Stopwatch running;
    const pid_t pid = Spawn(binary, arguments);
    if (pid < 0) return ResourceExhausted("the expert host cannot be started: %s", std::strerror(errno));
    int status = 0;
    bool asked = false;
    while (::waitpid(pid, &status, WNOHANG) != pid) {
      if (stop && !std::exchange(asked, true)) ::kill(pid, SIGTERM);
      absl::SleepFor(kServerPoll);
    }
    if (stop) break;
    if (const std::string why = WhyForGood(status, starts); !why.empty()) {
      return FailedPrecondition("the expert host %s; its own words are above", why);
    }
    const Deadline again = Deadline::In(pause.After(running.Elapsed()));
    spdlog::warn("the expert host {}; starting it again", HowItEnded(status));
    while (!stop && !again.Passed()) absl::SleepFor(kServerPoll);
  }
  return absl::OkStatus();
}

absl::Status Join(const ClusterOptions& options) {
  if (options.token.empty() && !options.experts) return InvalidArgument("--token is missing: `ferry cluster-token` prints one");
  if (!options.token.empty()) {
    const LateWord word("asking " + Escaped(options.coordinator) + " for a certificate");
    RETURN_IF_ERROR(JoinCluster(options.coordinator, options.token, options.folder, Deadline::In(kJoinTimeout)));
  }
  if (options.experts) return KeepExpertHost(options);
  std::printf("this host's certificate is in %s; start a worker with `ferry-worker --coordinator %s`\n", options.folder.c_str(),
              Escaped(options.coordinator).c_str());
  return absl::OkStatus();
}

}  // namespace

Command AddClusterInit(CLI::App& app) {
  auto options = std::make_shared<ClusterOptions>();
  AddFolder(app, options.get());
  app.footer(Examples({"ferry cluster-init                               once, on the coordinator's host",
                       "ferry serve -m model.gguf --coordinator-only --workers 2 --cluster-listen 192.0.2.1"}));
  return [options] { return Init(*options); };
}

Command AddClusterToken(CLI::App& app) {
  auto options = std::make_shared<ClusterOptions>();
  AddFolder(app, options.get());
  AddDecimal(app, "--valid-minutes", options->valid_minutes, 0.1, 60.0 * 24 * 7,
             "how long a host may use it (default 60); it is good once");
  app.footer(Examples({"ferry cluster-token                              on the coordinator's host, for one host that joins"}));
  return [options] { return Token(*options); };
}

Command AddJoin(CLI::App& app) {
  auto options = std::make_shared<ClusterOptions>();
  AddText(app, "coordinator", options->coordinator, "HOST or HOST:PORT of its --cluster-listen (port 8091)")->required();
  AddText(app, "--token", options->token,
          "what `ferry cluster-token` printed; not needed again once this host has its certificate");
  CLI::Option* const experts =
      AddSwitch(app, "--experts", options->experts,
                "then hold experts in this host's memory and compute with them, until Ctrl-C (ferry-expert-host)");
  const auto of_experts = [&](const char* names, std::string& target, const char* help) {
    AddText(app, names, target, help)->needs(experts);
  };
  of_experts("--listen", options->listen, "with --experts: ADDR or ADDR:PORT where the coordinator reaches this host");
  of_experts("-m,--model", options->model, "with --experts: the model's file on this host; default: the coordinator sends it");
  of_experts("--memory", options->memory, "with --experts: memory for them, 48GiB; default: what is available");
  of_experts("-t,--threads", options->threads, "with --experts: CPU threads; default: one a physical core");
  AddFolder(app, options.get());
  app.footer(Examples({"ferry join 192.0.2.1 --token fj-...               on a host that is to have a worker",
                       "ferry join 192.0.2.1 --token fj-... --experts     on a host that gives its memory and cores"}));
  return [options] { return Join(*options); };
}

}  // namespace ferry
