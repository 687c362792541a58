#include "cli/cluster_commands.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cli/plan_choices.h"
#include "kernels/kv_batch.h"

namespace ferry {
namespace {

// The flags that `ferry serve` with workers of its own would choose by their GPUs, which a coordinator alone does not know of.
void NameSizes(const ClusterChoice& choice, ModelOptions* options) {
  if (choice.workers.front().gpu < 0) return;
  options->batch = choice.cache.max_batch_tokens;
  options->micro_batch = choice.cache.micro_batch_tokens;
  options->context = choice.cache.num_blocks * kKvBlockTokens;
}

std::string ServeLine(ModelOptions options, const DescribedHost& head, const ClusterChoice& choice) {
  std::vector<std::string> flags;
  const bool elsewhere = choice.UsesWorkersElsewhere();
  if (!choice.layers.empty()) options.layers = choice.layers;
  if (elsewhere) {
    NameSizes(choice, &options);
    flags = {"--coordinator-only", "--workers", std::to_string(choice.workers.size())};
  } else if (choice.workers.front().gpu < 0) {
    flags = {"--backend", "cpu"};
  }
  if (elsewhere || choice.UsesEngines()) flags.insert(flags.end(), {"--cluster-listen", head.address});
  return ServeCommand(options, flags, /*own_workers=*/!elsewhere);
}

// Of the first host's workers, which show another certificate than the coordinator.
constexpr char kOwnCertificates[] = "worker-certs";

std::string JoinLine(const DescribedHost& head, bool on_head) {
  return absl::StrFormat("ferry join %s --token fj-...%s%s", head.address, on_head ? " --cluster-certs " : "",
                         on_head ? kOwnCertificates : "");
}

std::string WorkerLine(ModelOptions options, const std::vector<DescribedHost>& hosts, const ClusterChoice& choice,
                       size_t number) {
  const ClusterWorker& worker = choice.workers[number];
  const DescribedHost& host = hosts[worker.host];
  options.threads = worker.gpu < 0 ? static_cast<int>(host.cores) : 0;
  std::vector<std::string> place = {"--coordinator", hosts[0].address, "--listen",
                                    host.address,    "--worker-id",    std::to_string(number)};
  if (worker.gpu < 0) {
    place.insert(place.end(), {"--backend", "cpu"});
  } else {
    place.insert(place.end(), {"--backend", "cuda", "--device", std::to_string(worker.gpu)});
  }
  if (worker.host == 0) place.insert(place.end(), {"--cluster-certs", kOwnCertificates});
  return WorkerCommand(options, place);
}

// Those of one host; the first is its certificate.
std::vector<std::string> WorkerLines(const ModelOptions& options, const std::vector<DescribedHost>& hosts,
                                     const ClusterChoice& choice, size_t host) {
  std::vector<std::string> lines;
  for (size_t w = 0; w < choice.workers.size(); ++w) {
    if (choice.workers[w].host != host) continue;
    if (lines.empty()) lines.push_back(JoinLine(hosts[0], host == 0));
    lines.push_back(WorkerLine(options, hosts, choice, w));
  }
  return lines;
}

std::string EngineLine(const DescribedHost& head, const DescribedHost& host, int64_t worker_bytes, bool token) {
  const int64_t memory = host.memory_bytes - worker_bytes;
  return absl::StrFormat("ferry join %s%s --experts --memory %d%s", head.address, token ? " --token fj-..." : "",
                         memory - ReserveOf(memory), host.cores > 0 ? absl::StrFormat(" --threads %d", host.cores) : "");
}

// Of a host beside the first one.
std::vector<std::string> LinesOf(const ModelOptions& options, const std::vector<DescribedHost>& hosts, size_t number,
                                 const ClusterChoice& choice) {
  std::vector<std::string> lines = WorkerLines(options, hosts, choice, number);
  if (!choice.engines[number - 1].used) return lines;
  const bool has_certificate = !lines.empty();
  lines.push_back(EngineLine(hosts[0], hosts[number], choice.BytesOfCpuWorkers(number), /*token=*/!has_certificate));
  return lines;
}

std::string TokenLine(const DescribedHost& host) {
  return absl::StrFormat("ferry cluster-token     for %s, once the server runs", host.name);
}

}  // namespace

std::vector<std::vector<std::string>> ClusterCommands(const ModelOptions& options, const std::vector<DescribedHost>& hosts,
                                                      const ClusterChoice& choice) {
  std::vector<std::vector<std::string>> commands(hosts.size());
  const bool elsewhere = choice.UsesWorkersElsewhere();
  if (elsewhere || choice.UsesEngines()) commands[0].push_back("ferry cluster-init");
  commands[0].push_back(ServeLine(options, hosts[0], choice));
  for (size_t i = 1; i < hosts.size(); ++i) {
    commands[i] = LinesOf(options, hosts, i, choice);
    if (!commands[i].empty()) commands[0].push_back(TokenLine(hosts[i]));
  }
  if (!elsewhere) return commands;
  const std::vector<std::string> own = WorkerLines(options, hosts, choice, 0);
  if (!own.empty()) commands[0].push_back(TokenLine(hosts[0]));
  commands[0].insert(commands[0].end(), own.begin(), own.end());
  return commands;
}

}  // namespace ferry
