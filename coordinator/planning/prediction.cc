#include "coordinator/planning/prediction.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <tuple>
#include <utility>

#include "common/expert_plan.h"
#include "common/model/decode_rows.h"
#include "common/model/model_tensors.h"
#include "common/shm/futex.h"
#include "coordinator/planning/engine_turns.h"
#include "coordinator/planning/layer_costs.h"
#include "coordinator/planning/step_rows.h"

namespace ferry {
namespace {

constexpr int kSamples = 500;  // of the others' logits: an expert used once in 10,000 tokens still has its probability
constexpr uint64_t kSeed = 20;
constexpr int kDraws = 16;  // of the experts that a token of decode uses, where hosts hold a part of them

absl::StatusOr<std::vector<float>> Values(const GgufFile& file, const ModelConfig& config, int64_t layer, TensorRole role) {
  for (const DenseTensor& tensor : DenseTensorsOf(config, layer, layer + 1)) {
    if (tensor.role != role || tensor.layer != layer) continue;
    ASSIGN_OR_RETURN(const TensorInfo* const info, FindDense(config, file, tensor));
    std::vector<float> values(tensor.rows * tensor.cols);
    RETURN_IF_ERROR(DecodeRows(info->dtype, tensor.cols, info->data, values));
    return values;
  }
  return Internal("layer %d has no tensor of the role asked for", layer);
}

// The part of a router's input that the tokens of a text share grows with depth, and with it the same experts are used more
// often. Fitted to the experts that generated models activated on an H100: 540, 789, 855 and 985 of 12 x 128 with 310 to 16,384
// tokens (574, 796, 871, 1,004 by this), 475, 565 and 620 of 24 x 32 with 512 to 32,768 (495, 569, 641). Without it 917 instead
// of 855.
double CommonShare(int64_t layer) {
  const double depth = static_cast<double>(layer) / 22;
  return std::min(0.6, depth * depth);
}

// Factors between the measured rates and whole layers, fitted to the runs in docs/measurements: one H100 for the first
// group, two cores of an EPYC for the second.
constexpr double kGpuBytesPerValue = 56;         // of a token's n_embd values, through norms, residual and contributions
constexpr double kGpuHostTripSeconds = 0.05e-3;  // prefill: rows to the engine and contributions back
constexpr double kGpuHostEntrySeconds = 2.7e-6;  // the same of a (row, expert) pair, where no copy hides it
// Decode, of runs on an H100 and an H200.
constexpr double kGpuDecodeLayerOperations = 21;  // small operations' time: kernels that wait for each other, the routing's way
constexpr double kGpuOperationSeconds = 2.7e-6;   // where it was not measured
constexpr double kGpuOutputReadShare = 1.65;      // the output matrix is read faster than experts of one row
constexpr double kGpuDecodeHostTripSeconds =
    0.065e-3;                                   // to the engine and back, and its threads' start: 35 us on 16 cores, 75 on 32
constexpr double kTripBesideCopies = 2;         // reads across the link wait for copies on it
constexpr double kEngineWakeSeconds = 0.12e-3;  // of threads that have gone to sleep since it was asked last
constexpr double kGpuDecodeHandOverSeconds = 0.05e-3;  // from worker to worker
constexpr double kGpuDecodeStepSeconds = 0.04e-3;      // sampling, and the step's way through shared memory
constexpr double kDecodeMessages = 3;                  // that a step to another host and its answer cost: threads wake each other
constexpr double kCpuDenseShare = 0.5;                 // two int8 products for one: see docs/measurements/cpu.md
constexpr double kCpuAttentionShare = 0.15;            // scores and values in F32
constexpr double kCpuDecodeLayerSeconds = 0.05e-3;
constexpr double kCpuDecodeStepSeconds = 0.25e-3;
constexpr double kStepSeconds = 1e-3;  // of a step, and a worker in its way: messages, batch, logits
// The share of the slots whose experts a later step of the same prompt, or the first token behind it, uses.
constexpr double kKeptShare = 0.8;
constexpr int64_t kSlotsInUse = 2;  // of those computed and arriving, which the next layer cannot use

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

// Of the cache, by one row behind `context` tokens.
double KvBytesRead(const PredictionInput& input, int64_t layer, int64_t context) {
  const CacheShape& cache = input.placement.cache;
  const AttentionConfig& attention = input.config.layers[layer].attention;
  if (attention.delta()) return 2.0 * static_cast<double>(DeltaStateBytes(attention));  // read and written
  const int64_t tokens = attention.window > 0 ? std::min(context, attention.window) : context;
  const int64_t blocks = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  return static_cast<double>(KvLayerBytes(attention, cache.key_type, cache.value_type, blocks));
}

// The expert hosts as places of a plan of `layer`.
std::vector<EnginePlace> OthersOf(const PredictionInput& input, int64_t layer) {
  std::vector<EnginePlace> others;
  for (const PredictedExpertHost& host : input.expert_hosts) {
    others.push_back(host.place);
    others.back().holds = host.held[layer];
    if (others.back().holds == nullptr) others.back().rates = {};  // none of this layer
  }
  return others;
}

// What a CPU worker computes with: its host's cores.
const ExpertRates& CoresOf(const PredictionInput& input, size_t worker) {
  return input.NetworkOf(worker).host == 0 ? input.rates.host : input.rates.workers[worker].experts;
}

// What the coordinator's engines compute of a layer: `entries` (row, expert) pairs.
HostShareSize ShareOf(const PredictionInput& input, int64_t rows, double entries) {
  return {.rows = rows,
          .n_embd = input.config.n_embd,
          .entries = entries,
          .most_rows = input.placement.cache.max_batch_tokens,
          .top_k = input.config.router.top_k};
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

// How long the host and the expert hosts take for a number of experts of one layer, with a row each, and who computes them. The
// coordinator's planner divides them, for several draws of the experts.
class DividedDecode {
 public:
  DividedDecode(const PredictionInput& input, int64_t layer) {
    const std::vector<EnginePlace> others = OthersOf(input, layer);
    const ExpertLayout& record = input.arena.layer(layer);
    std::vector<int32_t> experts(input.arena.num_experts());
    std::iota(experts.begin(), experts.end(), 0);
    std::mt19937_64 random(kSeed);
    points_.resize(input.config.router.top_k + 1, {.seconds = 0, .on_others = std::vector<double>(others.size())});
    for (int draw = 0; draw < kDraws; ++draw) {
      std::shuffle(experts.begin(), experts.end(), random);
      for (size_t count = 1; count < points_.size(); ++count) {
        std::vector<ActivatedExpert> uses;
        for (size_t i = 0; i < count; ++i) uses.push_back({.expert = experts[i], .tokens = 1});
        const ExpertPlan plan = PlanExperts({.uses = uses,
                                             .bytes_per_expert = static_cast<double>(record.bytes),
                                             .flops_per_token = static_cast<double>(record.flops_per_token()),
                                             .rates = {.host = input.rates.host},
                                             .num_rows = 1,
                                             .others = others});
        points_[count].seconds += plan.engine_seconds / kDraws;
        for (const int32_t engine : plan.engines) {
          if (engine > 0) points_[count].on_others[engine - 1] += 1.0 / kDraws;
        }
      }
    }
  }
  // Of a mean of so many experts, at most top_k.
  double Seconds(double experts) const {
    const auto [below, above, share] = Around(experts);
    return below.seconds + share * (above.seconds - below.seconds);
  }
  double On(size_t other, double experts) const {
    const auto [below, above, share] = Around(experts);
    return below.on_others[other] + share * (above.on_others[other] - below.on_others[other]);
  }

 private:
  struct Point {
    double seconds = 0;
    std::vector<double> on_others;
  };
  std::tuple<const Point&, const Point&, double> Around(double experts) const {
    const auto below = std::min(static_cast<size_t>(experts), points_.size() - 1);
    const size_t above = std::min(below + 1, points_.size() - 1);
    return {points_[below], points_[above], std::min(experts - static_cast<double>(below), 1.0)};
  }
  std::vector<Point> points_;  // by the number of experts
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

// Decode through one worker's layers.
class DecodePredictor {
 public:
  DecodePredictor(const PredictionInput& input, size_t worker, int64_t context)
      : input_(input),
        layers_(input.placement.workers[worker].layers),
        worker_(input.rates.workers[worker]),
        network_(input.NetworkOf(worker)),
        cores_(CoresOf(input, worker)),
        context_(context),
        most_kept_(KeptOf(input, layers_, input.slots[worker])) {
    for (int64_t layer = layers_.first; layer < layers_.end && !input.expert_hosts.empty(); ++layer) {
      if (!input.arena.HasExperts(layer)) {
        divided_.emplace_back();
      } else if (layer > layers_.first && divided_.back() && input.arena.layer(layer) == input.arena.layer(layer - 1)) {
        divided_.push_back(divided_.back());
      } else {
        divided_.emplace_back(DividedDecode(input, layer));
      }
    }
    for (int64_t layer = layers_.first; layer < layers_.end; ++layer) {
      // Of a token's experts, those expected among the i most used: [0, ..., top_k].
      std::vector<double> probabilities = input.routing[layer];
      std::sort(probabilities.begin(), probabilities.end(), std::greater<>());
      std::vector<double>& hits = hits_.emplace_back(probabilities.size() + 1);
      if (input.placement.expert_rules[layer] == ExpertRule::kHost) continue;
      std::partial_sum(probabilities.begin(), probabilities.end(), hits.begin() + 1);
    }
  }

  // Experts of a layer that its slots hold at most.
  double most_kept() const { return most_kept_; }

  // One token, when slots hold the `kept` most used experts of each layer. `filling`: others are copied into slots meanwhile.
  // resident_share counts experts here.
  DecodePrediction Token(double kept, bool filling) const {
    const double device_read = input_.gpu ? worker_.experts.read_bytes_per_second : cores_.read_bytes_per_second;
    const double host_read = (filling ? input_.rates.host_beside_links : input_.rates.host).read_bytes_per_second;
    const double operation = worker_.operation_seconds > 0 ? worker_.operation_seconds : kGpuOperationSeconds;
    DecodePrediction result{.seconds_per_token = input_.gpu ? 0 : kCpuDecodeStepSeconds};
    result.expert_host_bytes.resize(input_.expert_hosts.size());
    for (int64_t layer = layers_.first; layer < layers_.end; ++layer) {
      const bool experts = input_.arena.HasExperts(layer);
      const double hits = experts ? Hits(layer, kept) : 0;
      const double misses = experts ? std::max(0.0, static_cast<double>(input_.config.router.top_k) - hits) : 0;
      const double bytes = static_cast<double>(input_.arena.layer(layer).bytes);
      const double dense = static_cast<double>(input_.sizes.dense_bytes[layer]) + KvBytesRead(input_, layer, context_);
      const double output = layer == input_.config.num_layers - 1 ? static_cast<double>(input_.sizes.output_bytes) : 0;
      // Where few are missed at all, most layers miss none; those that do wait for the host.
      const double missing = 1 - std::exp(-misses);
      const DividedDecode* const divided = divided_.empty() || !experts ? nullptr : &*divided_[layer - layers_.first];
      const auto seconds_of = [&](double count) {
        return divided != nullptr ? divided->Seconds(count) : count * bytes / host_read;
      };
      for (size_t i = 0; divided != nullptr && i < result.expert_host_bytes.size(); ++i) {
        result.expert_host_bytes[i] += divided->On(i, misses) * bytes;
      }
      const double here_seconds = hits * bytes / device_read;
      result.resident_share += hits;
      result.host_bytes += misses * bytes;
      result.host_expert_bytes += misses * bytes;
      result.device_bytes += hits * bytes + dense + output;
      result.seconds_per_token += (dense + output / (input_.gpu ? kGpuOutputReadShare : 1)) / device_read;
      if (input_.gpu) {
        const double layer_seconds = kGpuDecodeLayerOperations * operation + dense / device_read + here_seconds;
        double host = 0;
        if (missing > 0) {
          const double apart = layer_seconds / missing;  // from one layer that misses to the next
          const double trip = kGpuDecodeHostTripSeconds * (filling ? kTripBesideCopies : 1) +
                              kEngineWakeSeconds * std::exp(-absl::ToDoubleSeconds(kSpinBeforeSleep) / apart);
          host = seconds_of(misses / missing) + trip + NetworkSeconds(misses / missing);
        }
        result.seconds_per_token +=
            kGpuDecodeLayerOperations * operation + (1 - missing) * here_seconds + missing * std::max(host, here_seconds);
      } else {
        result.seconds_per_token += kCpuDecodeLayerSeconds + seconds_of(misses) + here_seconds + NetworkSeconds(misses);
      }
    }
    return result;
  }

  // Experts that move into each layer's slots during such a token: some of those that it missed, as many as the link carries.
  double CopiesPerLayer(const DecodePrediction& token) const {
    const double copies = std::min(token.host_bytes, worker_.link.Planned() * token.seconds_per_token);
    double bytes = 0;
    for (int64_t layer = layers_.first; layer < layers_.end; ++layer)
      bytes += static_cast<double>(input_.arena.layer(layer).bytes);
    return bytes > 0 ? copies / bytes : 0;
  }

 private:
  static double KeptOf(const PredictionInput& input, const LayerRange& layers, int64_t slots) {
    const int64_t records = input.arena.num_records(layers.first, layers.end);
    return records == 0 ? 0 : static_cast<double>(slots * input.arena.num_experts()) / static_cast<double>(records);
  }
  // Of one row's way to the coordinator and of what its experts there contribute.
  double NetworkSeconds(double experts) const { return HostShareSeconds(network_, ShareOf(input_, 1, experts)); }
  double Hits(int64_t layer, double kept) const {
    const std::vector<double>& hits = hits_[layer - layers_.first];
    const double last = static_cast<double>(hits.size() - 1), at = std::min(kept, last), whole = std::floor(at);
    const double below = hits[static_cast<size_t>(whole)];
    return at < last ? below + (at - whole) * (hits[static_cast<size_t>(whole) + 1] - below) : below;
  }

  const PredictionInput& input_;
  const LayerRange layers_;
  const WorkerRates& worker_;
  const WorkerNetwork network_;
  const ExpertRates& cores_;  // of a CPU worker
  const int64_t context_;
  const double most_kept_;
  std::vector<std::vector<double>> hits_;              // of each layer
  std::vector<std::optional<DividedDecode>> divided_;  // likewise, with expert hosts
};

void Add(const DecodePrediction& part, DecodePrediction* sum) {
  sum->seconds_per_token += part.seconds_per_token;
  sum->host_bytes += part.host_bytes;
  sum->host_expert_bytes += part.host_expert_bytes;
  sum->device_bytes += part.device_bytes;
  sum->resident_share += part.resident_share;
  sum->expert_host_bytes.resize(std::max(sum->expert_host_bytes.size(), part.expert_host_bytes.size()));
  for (size_t i = 0; i < part.expert_host_bytes.size(); ++i) sum->expert_host_bytes[i] += part.expert_host_bytes[i];
}

// From sums over all layers.
void Finish(const PredictionInput& input, DecodePrediction* result) {
  double message = 0;
  for (const WorkerRates& worker : input.rates.workers) message = std::max(message, worker.message_seconds);
  if (input.gpu) {
    const auto hand_overs = static_cast<double>(input.rates.workers.size() - 1);
    result->seconds_per_token += kGpuDecodeStepSeconds + kDecodeMessages * message + hand_overs * kGpuDecodeHandOverSeconds;
  } else if (!input.networks.empty()) {
    result->seconds_per_token += kDecodeMessages * message;
  }
  for (size_t worker = 1; worker < input.networks.size(); ++worker) {
    result->seconds_per_token += HiddenStatesSeconds(input.networks[worker - 1], input.networks[worker], 1, input.config.n_embd);
  }
  const int64_t expert_layers = input.arena.num_records() / input.arena.num_experts();
  result->resident_share /= static_cast<double>(expert_layers * input.config.router.top_k);
  if (!input.gpu) result->host_bytes += std::exchange(result->device_bytes, 0);
}

}  // namespace

absl::StatusOr<std::vector<std::vector<double>>> RoutingProbabilities(const GgufFile& file, const ModelConfig& config) {
  std::mt19937_64 random(kSeed);
  std::normal_distribution<double> normal;
  const int64_t num_experts = config.router.num_experts, top_k = config.router.top_k;
  std::vector<std::vector<double>> result;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].experts) {
      result.emplace_back();
      continue;
    }
    ASSIGN_OR_RETURN(const std::vector<float> weight, Values(file, config, layer, TensorRole::kRouterWeight));
    ASSIGN_OR_RETURN(const std::vector<float> norm, Values(file, config, layer, TensorRole::kFfnNorm));
    // A bias on the scores, whose slope is at most a quarter in the logit, counts as one on the logits four times as large.
    std::vector<double> middle(num_experts, 0);
    for (const auto& [has, role, factor] : {std::tuple{config.router.bias, TensorRole::kRouterBias, 1.0},
                                            std::tuple{config.router.selection_bias, TensorRole::kRouterSelectionBias, 4.0}}) {
      if (!has) continue;
      ASSIGN_OR_RETURN(const std::vector<float> bias, Values(file, config, layer, role));
      for (int64_t e = 0; e < num_experts; ++e) middle[e] += factor * bias[e];
    }
    std::vector<double> deviation(num_experts);
    for (int64_t e = 0; e < num_experts; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < config.n_embd; ++i) sum += std::pow(double{weight[e * config.n_embd + i]} * norm[i], 2);
      deviation[e] = std::sqrt(sum);
    }
    // What all tokens have in common moves the experts as a bias does.
    const double common = CommonShare(layer);
    for (int64_t e = 0; e < num_experts; ++e) {
      middle[e] += std::sqrt(common) * deviation[e] * normal(random);
      deviation[e] *= std::sqrt(1 - common);
    }
    if (top_k == num_experts) {
      result.emplace_back(num_experts, 1.0);
      continue;
    }
    std::vector<double> chosen(num_experts, 0), logits(num_experts), sorted;
    for (int sample = 0; sample < kSamples; ++sample) {
      for (int64_t e = 0; e < num_experts; ++e) logits[e] = middle[e] + deviation[e] * normal(random);
      // Against the top_k-th best of the others' logits an expert wins with a probability that needs no sampling of its own.
      sorted = logits;
      std::nth_element(sorted.begin(), sorted.begin() + top_k, sorted.end(), std::greater<>());
      const double next = sorted[top_k];
      const double last = *std::min_element(sorted.begin(), sorted.begin() + top_k);
      for (int64_t e = 0; e < num_experts; ++e) {
        const double bar = logits[e] >= last ? next : last;
        chosen[e] += 0.5 * std::erfc((bar - middle[e]) / (std::numbers::sqrt2 * std::max(deviation[e], 1e-9))) / kSamples;
      }
    }
    result.push_back(std::move(chosen));
  }
  return result;
}

double ExpectedActivated(const std::vector<double>& probabilities, int64_t tokens) {
  double sum = 0;
  for (const double p : probabilities) sum += 1 - std::pow(1 - std::min(p, 1.0), static_cast<double>(tokens));
  return sum;
}

PrefillPrediction PredictPrefill(const PredictionInput& input, int64_t tokens) {
  PrefillPrediction result{.tokens = tokens};
  std::mt19937_64 random(kSeed);
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

DecodePrediction PredictDecode(const PredictionInput& input, int64_t context) {
  DecodePrediction result;
  for (size_t worker = 0; worker < input.placement.workers.size(); ++worker) {
    const DecodePredictor predictor(input, worker, context);
    Add(predictor.Token(predictor.most_kept(), /*filling=*/false), &result);
  }
  Finish(input, &result);
  return result;
}

DecodePrediction PredictDecodeAfter(const PredictionInput& input, const PrefillPrediction& prefill, int64_t tokens) {
  DecodePrediction result;
  for (size_t worker = 0; worker < input.placement.workers.size(); ++worker) {
    const DecodePredictor predictor(input, worker, prefill.tokens);
    const double came = (prefill.shipped - prefill.helped + prefill.resident) * static_cast<double>(input.arena.num_experts()) /
                        static_cast<double>(input.arena.num_records());
    double kept = came <= predictor.most_kept() ? came : kKeptShare * predictor.most_kept();
    DecodePrediction sum;
    for (int64_t token = 0; token < tokens; ++token) {
      const bool filling = kept < predictor.most_kept();
      const DecodePrediction one = predictor.Token(kept, filling);
      Add(one, &sum);
      if (filling) kept = std::min(predictor.most_kept(), kept + predictor.CopiesPerLayer(one));
    }
    const double n = static_cast<double>(std::max<int64_t>(tokens, 1));
    for (double& bytes : sum.expert_host_bytes) bytes /= n;
    Add({.seconds_per_token = sum.seconds_per_token / n,
         .host_bytes = sum.host_bytes / n,
         .device_bytes = sum.device_bytes / n,
         .resident_share = sum.resident_share / n,
         .host_expert_bytes = sum.host_expert_bytes / n,
         .expert_host_bytes = sum.expert_host_bytes},
        &result);
  }
  Finish(input, &result);
  return result;
}

}  // namespace ferry
