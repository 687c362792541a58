#include "coordinator/planning/prefill_prediction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "common/expert_plan.h"
#include "coordinator/planning/engine_turns.h"
#include "coordinator/planning/layer_costs.h"
#include "coordinator/planning/step_rows.h"

namespace ferry {
namespace {

// Factors between the measured rates and whole layers, fitted to the runs in docs/measurements: one H100 for the first
// group, two cores of an EPYC for the second.
constexpr double kGpuBytesPerValue = 56;         // of a token's n_embd values, through norms, residual and contributions
constexpr double kGpuHostTripSeconds = 0.05e-3;  // prefill: rows to the engine and contributions back
constexpr double kGpuHostEntrySeconds = 2.7e-6;  // the same of a (row, expert) pair, where no copy hides it
constexpr double kCpuDenseShare = 0.5;           // two int8 products for one: see docs/measurements/cpu.md
constexpr double kCpuAttentionShare = 0.15;      // scores and values in F32
constexpr double kStepSeconds = 1e-3;            // of a step, and a worker in its way: messages, batch, logits
constexpr int64_t kSlotsInUse = 2;               // of those computed and arriving, which the next layer cannot use

// Scores and weighted values of the rows [first, first + rows) of one sequence.
double AttentionFlops(const ModelConfig& config, int64_t layer, int64_t first, int64_t rows) {
  const AttentionConfig& attention = config.layers[layer].attention;
  // Each row reads the state, replaces it and multiplies it with a query.
  if (attention.delta()) return 6.0 * static_cast<double>(attention.q_size() * attention.head_dim * rows);
  double keys = static_cast<double>(first) + static_cast<double>(rows) / 2;
  if (attention.window > 0) keys = std::min(keys, static_cast<double>(attention.window));
  const int64_t numbers = attention.latent() ? attention.num_heads * (attention.latent_dim() + attention.kv_rank)
                                             : 2 * attention.q_size();  // of a key and a value, all heads together
  return 2.0 * static_cast<double>(numbers) * keys * static_cast<double>(rows);
}

// One layer of a step as the worker and the planner go through it.
struct LayerTraffic {
  double activated = 0, resident = 0, shipped = 0, on_host = 0, helped = 0;
  double helped_seconds = 0;                                   // until the last helper has answered
  double waiting_bytes = 0, ahead_bytes = 0, later_bytes = 0;  // over the link: before rows come, before and after routing
  double host_seconds = 0;                                     // until the host, and the expert hosts, have answered
  std::vector<double> on_others;                               // experts of those on the host, by expert host
  double host_entries = 0;                                     // (row, expert) pairs computed on the host
  double device_flops = 0;                                     // of experts
};

class StepPredictor {
 public:
  StepPredictor(const PredictionInput& input, size_t worker)
      : input_(input),
        layers_(input.placement.workers[worker].layers),
        slots_(input.slots[worker]),
        num_expert_layers_(input.arena.num_records(layers_.first, layers_.end) / input.arena.num_experts()),
        worker_(input.rates.workers[worker]),
        network_(input.NetworkOf(worker)),
        cores_(CoresOf(input, worker)) {}

  // Its layers of the steps so far.
  const std::vector<LayerTurn>& turns() const { return turns_; }

  // Seconds of a worker's layers for rows [first, first + rows) of a prompt, which it awaited for `waited` seconds.
  // `helps_from[i]`: how long after their arrival worker i has nothing else to do; infinite: never.
  double Seconds(int64_t first, int64_t rows, double waited, const std::vector<double>& helps_from, std::mt19937_64& random,
                 PrefillPrediction* total) {
    double seconds = kStepSeconds;
    turns_.push_back({.rest = kStepSeconds});
    waited_seconds_ = waited;
    for (int64_t layer = layers_.first; layer < layers_.end; ++layer) {
      const double before_routing = SecondsBeforeRouting(layer, first, rows);
      if (!input_.arena.HasExperts(layer)) {
        seconds += before_routing;
        turns_.push_back({.own = before_routing});
        continue;
      }
      helpers_.clear();
      for (size_t i = 0; i < helps_from.size(); ++i) {
        if (helps_from[i] <= seconds) helpers_.push_back(HelperOf(layer, input_.rates.workers[i]));
      }
      const LayerTraffic traffic = Traffic(layer, first > 0, rows, before_routing, random);
      const double layer_seconds = LayerSeconds(traffic, before_routing, rows);
      seconds += layer_seconds;
      turns_.push_back(TurnOf(traffic, before_routing, rows, layer_seconds));
      total->activated += traffic.activated;
      total->resident += traffic.resident;
      total->shipped += traffic.shipped;
      total->on_host += traffic.on_host;
      total->helped += traffic.helped;
      total->on_expert_hosts.resize(input_.expert_hosts.size());
      for (size_t i = 0; i < others_.size(); ++i) total->on_expert_hosts[i] += traffic.on_others[i];
      total->bytes_shipped += traffic.helped * static_cast<double>(input_.arena.layer(layer).bytes);
      total->bytes_shipped += traffic.waiting_bytes + traffic.ahead_bytes + traffic.later_bytes;
    }
    return seconds;
  }

 private:
  // GPUs are taken to reach each other, as by NVLink. Where they do not, help brings less than predicted, and nothing in steps of
  // more rows than a board holds.
  HelperPlace HelperOf(int64_t layer, const WorkerRates& helper) const {
    constexpr int64_t kBytesPerValue = 2;
    return PlaceOf({.link_bytes_per_second = helper.link.Planned(),
                    .own_link_bytes_per_second = worker_.link.Planned(),
                    .device_to_device = true,
                    .flops_per_second = kGpuProductShare * helper.experts.flops_per_second},
                   static_cast<double>(input_.arena.layer(layer).gate.cols * kBytesPerValue));
  }

  // What slots hold of a layer's experts when it is routed.
  struct Slots {
    std::vector<uint32_t> resident;  // ActivatedExpert::resident of each expert
    std::vector<bool> copied;        // in this step
    double waiting_bytes = 0, ahead_bytes = 0;
  };
  Slots SlotsAtRouting(int64_t layer, bool later_step, int64_t rows, double before_routing) const {
    const std::vector<double>& probabilities = input_.routing[layer];
    const double record_bytes = static_cast<double>(input_.arena.layer(layer).bytes);
    const bool ships = slots_ > 0 && input_.placement.expert_rules[layer] != ExpertRule::kHost;
    std::vector<int32_t> by_use(probabilities.size());
    std::iota(by_use.begin(), by_use.end(), 0);
    std::stable_sort(by_use.begin(), by_use.end(), [&](int32_t a, int32_t b) { return probabilities[a] > probabilities[b]; });

    const auto num_layers = static_cast<double>(num_expert_layers_);
    const bool holds_all = slots_ >= num_expert_layers_ * input_.arena.num_experts();  // and is filled at load
    const double kept = static_cast<double>(slots_) / num_layers * (holds_all ? 1 : kKeptShare);
    const int64_t num_kept = (later_step || (holds_all && !input_.cold)) && ships ? static_cast<int64_t>(kept) : 0;
    int64_t room = ships && rows >= kMinRowsToForecast ? slots_ - kSlotsInUse : 0;
    // While rows are awaited the link copies for all layers alike.
    const double in_time = waited_seconds_ * worker_.link.Planned() / record_bytes;
    auto while_waiting = static_cast<int64_t>(std::min(in_time, static_cast<double>(room)) / num_layers);
    // The first of those copied ahead have arrived when the layer is routed.
    auto arrive = static_cast<int64_t>(before_routing * worker_.link.Planned() / record_bytes);
    Slots slots{.resident = std::vector<uint32_t>(probabilities.size()), .copied = std::vector<bool>(probabilities.size())};
    std::vector<int32_t> ahead;
    for (size_t rank = 0; rank < by_use.size(); ++rank) {
      const int32_t e = by_use[rank];
      const double used = 1 - std::pow(1 - std::min(probabilities[e], 1.0), static_cast<double>(rows));
      const bool worth = used > kCertainUse && probabilities[e] * static_cast<double>(rows) >= worth_tokens_;
      if (static_cast<int64_t>(rank) < num_kept) {
        slots.resident[e] = 1;
      } else if (while_waiting > 0 && used > kCertainUse) {
        slots.resident[e] = 1;
        slots.copied[e] = true;
        slots.waiting_bytes += record_bytes;
        --while_waiting;
      } else if (room > 0 && (worth || !input_.ooae)) {
        ahead.push_back(e);
        --room;
      }
    }
    // Helpers copy their shares once the layer is routed.
    if (!helpers_.empty()) {
      ahead.resize(ShareBesideHelpers(static_cast<int64_t>(ahead.size()), static_cast<int64_t>(helpers_.size())));
    }
    for (const int32_t e : ahead) {
      slots.copied[e] = true;
      slots.resident[e] = arrive-- > 0 ? 1 : kComing;
      slots.ahead_bytes += record_bytes;
    }
    return slots;
  }

  PlannerInput PlannerInputOf(int64_t layer, int64_t rows, std::span<const ActivatedExpert> uses) const {
    const ExpertLayout& expert = input_.arena.layer(layer);
    const ExpertRule rule = input_.placement.expert_rules[layer];
    return {.uses = uses,
            .bytes_per_expert = static_cast<double>(expert.bytes),
            .flops_per_token = static_cast<double>(expert.flops_per_token()),
            .num_slots = slots_,
            .rates = {.link_bytes_per_second = worker_.link.Planned(),
                      .host = input_.rates.host_beside_links,
                      .device_flops_per_second = input_.gpu ? ProductRate() : 0},
            .host_allowed = rule != ExpertRule::kDevice,
            .ship_allowed = rule != ExpertRule::kHost && rows > kMaxRowsWithoutPlan,
            .ship_all = !input_.ooae,
            .num_rows = rows,
            .way = WayOf(network_, ShareOf(input_, rows, 0)),
            .others = others_,
            .helpers = helpers_,
            .max_helper_tokens = (rows * input_.config.router.top_k + 1) / 2};
  }

  LayerTraffic Traffic(int64_t layer, bool later_step, int64_t rows, double before_routing, std::mt19937_64& random) {
    const Slots slots = SlotsAtRouting(layer, later_step, rows, before_routing);
    const std::vector<double>& probabilities = input_.routing[layer];
    std::vector<ActivatedExpert> uses;
    for (int32_t e = 0; e < static_cast<int32_t>(probabilities.size()); ++e) {
      const int64_t tokens = std::binomial_distribution<int64_t>(rows, std::min(probabilities[e], 1.0))(random);
      if (tokens == 0) continue;
      uses.push_back({.expert = e, .tokens = static_cast<int32_t>(tokens), .resident = slots.resident[e]});
    }
    others_ = OthersOf(input_, layer);
    const PlannerInput input = PlannerInputOf(layer, rows, uses);
    const ExpertPlan plan = PlanExperts(input);
    LayerTraffic traffic = {.activated = static_cast<double>(uses.size()),
                            .waiting_bytes = slots.waiting_bytes,
                            .ahead_bytes = slots.ahead_bytes,
                            .host_seconds = others_.empty() ? plan.host_seconds : plan.engine_seconds,
                            .on_others = std::vector<double>(others_.size())};
    for (size_t i = 0; i < uses.size(); ++i) {
      const int32_t e = uses[i].expert;
      if (plan.places[i] == ExpertPlace::kHost) {
        traffic.on_host += 1;
        traffic.host_entries += uses[i].tokens;
        if (!plan.engines.empty() && plan.engines[i] > 0) traffic.on_others[plan.engines[i] - 1] += 1;
        continue;
      }
      if (!plan.helpers.empty() && plan.helpers[i] >= 0) {
        traffic.shipped += 1;
        traffic.helped += 1;
        continue;
      }
      traffic.device_flops += static_cast<double>(uses[i].tokens) * input.flops_per_token;
      const bool shipped = slots.copied[e] || plan.places[i] == ExpertPlace::kShip;
      (shipped ? traffic.shipped : traffic.resident) += 1;
      if (shipped && !slots.copied[e]) traffic.later_bytes += input.bytes_per_expert;
    }
    if (traffic.helped > 0) traffic.helped_seconds = plan.link_seconds;
    worth_tokens_ = static_cast<double>(TokensWorthACopy(uses, plan.places));
    return traffic;
  }

  // Seconds of one layer's attention matrices, its attention and the small operations beside them.
  double SecondsBeforeRouting(int64_t layer, int64_t first, int64_t rows) const {
    const double matrices = DenseMatrixFlops(input_.config, layer) * static_cast<double>(rows);
    const double attention = AttentionFlops(input_.config, layer, first, rows);
    if (!input_.gpu) {
      return matrices / (kCpuDenseShare * cores_.flops_per_second) + attention / (kCpuAttentionShare * cores_.flops_per_second);
    }
    return (matrices + attention) / ProductRate() + kGpuLayerSeconds +
           kGpuBytesPerValue * static_cast<double>(rows * input_.config.n_embd) / worker_.experts.read_bytes_per_second;
  }

  // The layer, which takes `seconds`, as what the worker, the first host and everything else do one after the other.
  LayerTurn TurnOf(const LayerTraffic& traffic, double before_routing, int64_t rows, double seconds) const {
    const double network = HostShareSeconds(network_, ShareOf(input_, rows, traffic.host_entries));
    const double of_cores = input_.first_host_cores > 0 ? network / static_cast<double>(input_.first_host_cores) : 0;
    const double first_host = traffic.host_seconds + of_cores;
    return {.own = before_routing, .first_host = first_host, .rest = std::max(0.0, seconds - before_routing - first_host)};
  }

  // A network carries records and contributions to the worker one after the other.
  double LayerSeconds(const LayerTraffic& traffic, double before_routing, int64_t rows) const {
    const HostShareSize share = ShareOf(input_, rows, traffic.host_entries);
    const double contributions = ContributionSeconds(network_, share);
    const double link = worker_.link.Planned() > 0 ? worker_.link.Planned() : 1;  // without a link nothing is shipped
    const double later_seconds = traffic.later_bytes / link;
    const double link_seconds = traffic.ahead_bytes / link + later_seconds + contributions;
    const bool asks = slots_ > 0 && traffic.resident < traffic.activated && rows > kMaxRowsWithoutPlan;
    const double routed = before_routing + (asks ? network_.exchange_seconds : 0);
    if (!input_.gpu) {
      return routed + traffic.device_flops / cores_.flops_per_second +
             std::max(traffic.host_seconds + HostShareSeconds(network_, share), link_seconds);
    }
    double host = traffic.host_seconds > 0 ? traffic.host_seconds + kGpuHostTripSeconds + HostShareSeconds(network_, share) : 0;
    if (traffic.device_flops == 0) host += traffic.host_entries * kGpuHostEntrySeconds;
    // The link runs on from layer to layer while there are experts certain enough to be copied ahead.
    return std::max(link_seconds, routed + std::max({host, traffic.device_flops / ProductRate(), later_seconds + contributions,
                                                     traffic.helped_seconds}));
  }

  double ProductRate() const { return kGpuProductShare * worker_.experts.flops_per_second; }

  const PredictionInput& input_;
  const LayerRange layers_;
  const int64_t slots_;
  const int64_t num_expert_layers_;
  const WorkerRates& worker_;
  const WorkerNetwork network_;
  const ExpertRates& cores_;  // of a CPU worker
  std::vector<LayerTurn> turns_;
  double waited_seconds_ = 0;
  double worth_tokens_ = 0;           // fewest tokens worth a copy ahead, by the layer before
  std::vector<HelperPlace> helpers_;  // of the layer in progress
  std::vector<EnginePlace> others_;   // likewise
};
// When each other worker has nothing else to do than help worker `worker` with a step that begins there at `begin`: those before
// it once they have no further step, those behind it once their slots are full of what they will need. `free_at`: when each has
// ended its last step; infinite where it helps nobody.
std::vector<double> HelpsFrom(const PredictionInput& input, size_t worker, double begin, const std::vector<double>& free_at,
                              bool first_step, bool last_step) {
  std::vector<double> from(free_at.size(), std::numeric_limits<double>::infinity());
  if (!input.help || !input.gpu) return from;
  if (input.NetworkOf(worker).host != 0) return from;  // workers help each other through the coordinator's memory
  for (size_t i = 0; i < free_at.size(); ++i) {
    const double link = input.rates.workers[i].link.Planned();
    if (i == worker || input.NetworkOf(i).host != 0 || link <= 0 || input.slots[i] == 0 || (i < worker && !last_step)) continue;
    const LayerRange& layers = input.placement.workers[i].layers;
    const int64_t layer = input.arena.NextWithExperts(layers.first, layers.end);
    const bool fills = i > worker && first_step && layer < layers.end;
    const double full = fills ? static_cast<double>(input.slots[i] * input.arena.layer(layer).bytes) / link : 0;
    from[i] = std::max(0.0, free_at[i] + full - begin);
  }
  return from;
}

}  // namespace

PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens) {
  PrefillPrediction result{.tokens = tokens};
  std::mt19937_64 random(kPredictionSeed);
  const size_t num_workers = input.placement.workers.size();
  std::vector<WorkerCapacity> capacities;
  for (size_t worker = 0; worker < num_workers; ++worker) {
    const WorkerRates& rates = input.rates.workers[worker];
    capacities.push_back({.layers = input.placement.workers[worker].layers,
                          .slots = input.slots[worker],
                          .link_bytes_per_second = rates.link.alone,
                          .flops_per_second = rates.experts.flops_per_second});
  }
  const double step_cost = StepCostRows(input.config, input.arena, capacities);
  const int64_t step_rows = std::clamp<int64_t>(input.placement.cache.max_batch_tokens, 1,
                                                std::max<int64_t>(StepRows(tokens, num_workers, step_cost), 1));
  result.step_rows = std::min(step_rows, tokens);
  std::vector<double> free_at(num_workers);  // steps follow each other through the workers
  std::vector<std::vector<StepTurns>> turns;
  for (int64_t first = 0; first < tokens; first += step_rows) {
    const int64_t rows = std::min(step_rows, tokens - first);
    double through = 0;
    std::vector<StepTurns>& step = turns.emplace_back(num_workers);
    for (size_t worker = 0; worker < free_at.size(); ++worker) {
      if (worker > 0) {
        step[worker].from_before =
            HiddenStatesSeconds(input.NetworkOf(worker - 1), input.NetworkOf(worker), rows, input.config.n_embd);
      }
      through += step[worker].from_before;
      const double begin = std::max(through, free_at[worker]);
      StepPredictor predictor(input, worker);
      through = free_at[worker] =
          begin + predictor.Seconds(first, rows, begin - free_at[worker],
                                    HelpsFrom(input, worker, begin, free_at, first == 0, first + step_rows >= tokens), random,
                                    &result);
      step[worker].layers = predictor.turns();
    }
  }
  result.seconds = free_at.back();
  if (input.networks.empty()) return result;
  std::vector<bool> on_first_host;
  for (const WorkerNetwork& network : input.networks) on_first_host.push_back(!input.gpu && network.host == 0);
  result.seconds = std::max(result.seconds, SecondsInTurns(turns, on_first_host));
  return result;
}
}  // namespace ferry
