#include "cli/cluster_choices.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "cli/plan_choices.h"
#include "common/expert_wire.h"
#include "coordinator/planning/layer_search.h"

namespace ferry {
namespace {

constexpr double kImpossible = std::numeric_limits<double>::infinity();
constexpr int kSearchCalls = 48;       // of one search, with two hosts; a fraction of it with more
constexpr double kWorthLayers = 1.02;  // what a division by hand must be quicker by; predictions are no better than that

// Which hosts have workers, and the layers of these; no ranges: what --layers or the coordinator says.
struct ClusterShape {
  std::vector<size_t> hosts;
  std::vector<LayerRange> ranges;
};

class ChoiceMaker {
 public:
  ChoiceMaker(const ModelOptions& options, const PredictedModel& model, const std::vector<DescribedHost>& hosts,
              const std::vector<int64_t>& lengths)
      : options_(options), model_(model), hosts_(hosts), lengths_(lengths) {}

  absl::StatusOr<std::vector<ClusterChoice>> All() {
    std::vector<ClusterChoice> choices;
    const ClusterShape alone = {.hosts = {0}, .ranges = {}};
    Add(hosts_[0].name + " alone", alone, /*engines=*/false, &choices);
    if (hosts_.size() > 1) Add("with engines", alone, /*engines=*/true, &choices);
    const std::vector<size_t> able = HostsForWorkers();
    if (able != alone.hosts) {
      std::vector<std::string> left_out(hosts_.size());
      const ClusterShape shape = ShapeOf(able, &left_out);
      if (shape.hosts != alone.hosts && Add("with workers", shape, /*engines=*/false, &choices)) {
        Add("with workers, engines", shape, /*engines=*/true, &choices);
      } else if (shape.hosts != alone.hosts) {
        for (const size_t host : shape.hosts) left_out[host] = std::string(error_.message());
      }
      if (shape.hosts != able) Add("with all workers", {.hosts = able, .ranges = {}}, /*engines=*/false, &choices);
      for (ClusterChoice& choice : choices) choice.left_out = left_out;
    }
    if (choices.empty()) return error_;
    return choices;
  }

 private:
  // Those with GPUs, else the first and those that give a CPU worker.
  std::vector<size_t> HostsForWorkers() const {
    const bool gpus =
        std::any_of(hosts_.begin(), hosts_.end(), [](const DescribedHost& host) { return !host.gpu_bytes.empty(); });
    std::vector<size_t> able;
    for (size_t i = 0; i < hosts_.size(); ++i) {
      if (gpus ? !hosts_[i].gpu_bytes.empty() : i == 0 || hosts_[i].cpu_worker) able.push_back(i);
    }
    return able;
  }

  // One after the other, the host whose workers are missed least leaves, until each one left is worth it.
  ClusterShape ShapeOf(std::vector<size_t> hosts, std::vector<std::string>* left_out) {
    const int calls = std::max(2, kSearchCalls * 4 / static_cast<int>(hosts.size() * hosts.size()));
    FoundShape with = BestOf(hosts, calls);
    while (hosts.size() > 1) {
      size_t least = 0;
      FoundShape without;
      for (const size_t host : hosts) {
        std::vector<size_t> others = hosts;
        std::erase(others, host);
        FoundShape found = BestOf(std::move(others), calls);
        if (found.seconds < without.seconds) least = host, without = std::move(found);
      }
      if (with.seconds == kImpossible && without.seconds == kImpossible) {  // several are too many
        least = hosts.back();
        without.shape.hosts.assign(hosts.begin(), hosts.end() - 1);
      } else if (!(without.seconds < kWorthAHost * with.seconds)) {
        break;
      }
      (*left_out)[least] = Why(with.seconds, without.seconds);
      hosts = without.shape.hosts;
      with = std::move(without);
    }
    return with.shape;
  }
  std::string Why(double with, double without) const {
    const std::string what = absl::StrFormat("a prompt of %d tokens with an answer of %d takes", lengths_.back(), kAnswerTokens);
    if (with == kImpossible) return "with its workers a GPU or a host would lack memory, or a worker layers";
    return absl::StrFormat("%s %.2f s with its workers and %.2f s without", what, with, without);
  }

  struct FoundShape {
    ClusterShape shape;
    double seconds = kImpossible;
  };
  // With the layers that are quickest.
  FoundShape BestOf(std::vector<size_t> hosts, int calls) {
    FoundShape found = {.shape = {.hosts = std::move(hosts), .ranges = {}}};
    const std::optional<ClusterChoice> even = Predict(found.shape, /*engines=*/false);
    if (!even) return found;
    found.seconds = even->seconds;
    if (!options_.layers.empty() || even->workers.size() < 2) return found;
    std::vector<LayerRange> begin;
    for (const ClusterWorker& worker : even->workers) begin.push_back(worker.placement.layers);
    const auto cost = [&](const std::vector<LayerRange>& ranges) {
      const std::optional<ClusterChoice> choice = Predict({.hosts = found.shape.hosts, .ranges = ranges}, /*engines=*/false);
      return choice ? choice->seconds : kImpossible;
    };
    FoundLayers layers = SearchLayers(begin, cost, calls);
    if (layers.cost * kWorthLayers < found.seconds) found = {{found.shape.hosts, std::move(layers.ranges)}, layers.cost};
    return found;
  }

  // False: the coordinator would refuse it, as error_ says.
  bool Add(const std::string& name, const ClusterShape& shape, bool engines, std::vector<ClusterChoice>* choices) {
    std::optional<ClusterChoice> choice = Predict(shape, engines);
    if (!choice) return false;
    if (engines && !choice->UsesEngines() && !choices->empty()) {  // the same as the choice without, which now says why
      choices->back().engines = std::move(choice->engines);
      return true;
    }
    choice->name = name;
    choice->left_out.resize(hosts_.size());
    choice->layers = LayersText(shape.ranges);
    choices->push_back(*std::move(choice));
    return true;
  }

  PlannedMachine MachineOf(const ClusterShape& shape) const {
    PlannedMachine machine{.host_bytes = hosts_[0].memory_bytes};
    for (const size_t host : shape.hosts) {
      const std::string of = host == 0 ? "" : " of " + hosts_[host].name;
      for (size_t gpu = 0; gpu < hosts_[host].gpu_bytes.size(); ++gpu) {
        const int64_t bytes = hosts_[host].gpu_bytes[gpu];
        machine.devices.push_back({.name = absl::StrFormat("cuda:%d%s", gpu, of),
                                   .gpu = true,
                                   .total_bytes = bytes,
                                   .free_bytes = bytes,
                                   .elsewhere = host != 0});
      }
      if (hosts_[host].gpu_bytes.empty()) machine.devices.push_back({.name = "cpu" + of, .elsewhere = host != 0});
    }
    machine.gpus_by_hand = machine.gpu();
    return machine;
  }

  static WorkerNetwork NetworkOf(const DescribedHost& host, size_t number) {
    if (number == 0) return {};
    return {.host = static_cast<int>(number), .exchange_seconds = host.exchange_seconds, .bytes_per_second = host.network_rate};
  }
  WorkerRates RatesOf(const ClusterWorker& worker) const {
    const DescribedHost& host = hosts_[worker.host];
    const bool gpu = worker.gpu >= 0;
    double link = !gpu ? 0 : host.link > 0 ? host.link : kAssumedLink;
    if (worker.host > 0) link = gpu ? std::min(link, host.network_rate) : host.network_rate;
    WorkerRates rates = {.link = {.alone = link},
                         .experts = {.flops_per_second = host.gpu_flops},
                         .message_seconds = StepMessageSeconds(NetworkOf(host, worker.host))};
    if (!gpu) rates.experts = {.read_bytes_per_second = host.read, .flops_per_second = host.flops};
    return rates;
  }

  // Its workers, as model_ is divided.
  absl::StatusOr<std::vector<ClusterWorker>> WorkersOf(const ClusterShape& shape, const PlannedMachine& machine) const {
    ASSIGN_OR_RETURN(const std::vector<int64_t> slots, SlotsOf(options_, model_, machine));
    std::vector<ClusterWorker> workers;
    for (const size_t host : shape.hosts) {
      for (size_t i = 0; i < std::max<size_t>(hosts_[host].gpu_bytes.size(), 1); ++i) {
        const size_t w = workers.size();
        const WorkerPlacement& placement = model_.placement().workers[w];
        workers.push_back({.host = host,
                           .gpu = machine.gpu() ? static_cast<int>(i) : -1,
                           .placement = placement,
                           .slots = slots[w],
                           .holds_all = HoldsAll(placement.layers, slots[w])});
      }
    }
    return workers;
  }

  // -ot may leave experts to the host, however many slots there are.
  bool HoldsAll(const LayerRange& layers, int64_t slots) const {
    const auto rules = model_.placement().expert_rules.begin();
    return slots >= model_.arena().num_records(layers.first, layers.end) &&
           std::find(rules + layers.first, rules + layers.end, ExpertRule::kHost) == rules + layers.end;
  }

  PredictionInput InputOf(const std::vector<ClusterWorker>& workers) const {
    MachineRates rates;
    rates.host = rates.host_beside_links = {.read_bytes_per_second = hosts_[0].read, .flops_per_second = hosts_[0].flops};
    std::vector<int64_t> slots;
    std::vector<WorkerNetwork> networks;
    for (const ClusterWorker& worker : workers) {
      rates.workers.push_back(RatesOf(worker));
      slots.push_back(worker.slots);
      networks.push_back(NetworkOf(hosts_[worker.host], worker.host));
    }
    PredictionInput input = model_.Input(std::move(rates), std::move(slots), workers.front().gpu >= 0);
    input.networks = std::move(networks);
    input.first_host_cores = hosts_[0].cores;
    return input;
  }

  std::vector<CandidateHost> EnginesBeside(const ClusterChoice& choice) const {
    std::vector<CandidateHost> candidates;
    for (size_t i = 1; i < hosts_.size(); ++i) {
      candidates.push_back({.memory_bytes = hosts_[i].memory_bytes - choice.BytesOfCpuWorkers(i),
                            .rates = {.read_bytes_per_second = hosts_[i].read, .flops_per_second = hosts_[i].flops},
                            .exchange_seconds = hosts_[i].exchange_seconds,
                            .bytes_per_second = hosts_[i].network_rate});
    }
    return candidates;
  }

  void CheckMemory(ClusterChoice* choice) const {
    for (size_t i = 1; i < hosts_.size(); ++i) {
      const int64_t needed = choice->BytesOfCpuWorkers(i);
      if (needed <= hosts_[i].memory_bytes) continue;
      choice->fit.lacks.push_back({.where = hosts_[i].name, .needed_bytes = needed, .had_bytes = hosts_[i].memory_bytes});
    }
  }

  // Nothing: the coordinator would refuse that division, and error_ says why.
  std::optional<ClusterChoice> Predict(const ClusterShape& shape, bool engines) {
    absl::StatusOr<ClusterChoice> choice = TryToPredict(shape, engines);
    if (choice.ok()) return *std::move(choice);
    error_ = choice.status();
    return std::nullopt;
  }
  absl::StatusOr<ClusterChoice> TryToPredict(const ClusterShape& shape, bool engines) {
    const PlannedMachine machine = MachineOf(shape);
    ModelOptions options = options_;
    if (!shape.ranges.empty()) options.layers = LayersText(shape.ranges);
    RETURN_IF_ERROR(model_.Place(options, static_cast<int>(machine.devices.size()), machine.SmallestGpu()));
    ClusterChoice choice = {.fit = FitOf(options_, model_, machine), .seconds = kImpossible};
    choice.cache = model_.placement().cache;
    ASSIGN_OR_RETURN(choice.workers, WorkersOf(shape, machine));
    choice.engines.resize(hosts_.size() - 1);
    CheckMemory(&choice);
    if (!choice.fit.lacks.empty()) return choice;
    PredictionInput input = InputOf(choice.workers);
    if (engines) {
      const int64_t max_entries = kMaxExchangeRows * model_.config().router.top_k;
      choice.engines = ChooseExpertHosts(EnginesBeside(choice), max_entries, &input);
    }
    for (const int64_t tokens : lengths_) choice.prefills.push_back(PredictPrefill(input, tokens));
    choice.decode = PredictDecode(input);
    choice.seconds = choice.prefills.back().seconds +
                     static_cast<double>(kAnswerTokens) * PredictDecode(input, lengths_.back()).seconds_per_token;
    return choice;
  }

  const ModelOptions& options_;
  PredictedModel model_;
  const std::vector<DescribedHost>& hosts_;
  const std::vector<int64_t>& lengths_;
  absl::Status error_;  // the last
};

}  // namespace

bool ClusterChoice::UsesWorkersElsewhere() const {
  return std::any_of(workers.begin(), workers.end(), [](const ClusterWorker& worker) { return worker.host > 0; });
}
int64_t ClusterChoice::BytesOfCpuWorkers(size_t host) const {
  int64_t bytes = 0;
  for (const ClusterWorker& worker : workers) {
    if (worker.host == host && worker.gpu < 0) bytes += worker.placement.dense_bytes + worker.placement.kv_bytes;
  }
  return bytes;
}
bool ClusterChoice::UsesEngines() const {
  return std::any_of(engines.begin(), engines.end(), [](const HostUse& use) { return use.used; });
}

absl::StatusOr<std::vector<ClusterChoice>> ClusterChoicesOf(const ModelOptions& options, const PredictedModel& model,
                                                            const std::vector<DescribedHost>& hosts,
                                                            const std::vector<int64_t>& lengths) {
  return ChoiceMaker(options, model, hosts, lengths).All();
}

const ClusterChoice* Quickest(const std::vector<ClusterChoice>& choices) {
  const ClusterChoice* quickest = nullptr;
  for (const ClusterChoice& choice : choices) {
    if (!choice.fit.lacks.empty()) continue;
    const double worth = quickest != nullptr && choice.workers.size() > quickest->workers.size() ? kWorthAHost : 1;
    if (quickest == nullptr || worth * choice.seconds < quickest->seconds) quickest = &choice;
  }
  return quickest;
}

}  // namespace ferry
