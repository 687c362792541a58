#include "coordinator/planning/decode_prediction.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <tuple>
#include <utility>

#include "common/shm/futex.h"

namespace ferry {
namespace {

constexpr int kDraws = 16;  // of the experts that a token of decode uses, where hosts hold a part of them
// Factors between the measured rates and whole layers, fitted to the runs in docs/measurements: on an H100 and an H200, and on
// two cores of an EPYC.
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
constexpr double kCpuDecodeLayerSeconds = 0.05e-3;
constexpr double kCpuDecodeStepSeconds = 0.25e-3;

// Of the cache, by one row behind `context` tokens.
double KvBytesRead(const PredictionInput& input, int64_t layer, int64_t context) {
  const CacheShape& cache = input.placement.cache;
  const AttentionConfig& attention = input.config.layers[layer].attention;
  if (attention.delta()) return 2.0 * static_cast<double>(DeltaStateBytes(attention));  // read and written
  const int64_t tokens = attention.window > 0 ? std::min(context, attention.window) : context;
  const int64_t blocks = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  return static_cast<double>(KvLayerBytes(attention, cache.key_type, cache.value_type, blocks));
}

// How long the host and the expert hosts take for a number of experts of one layer, with a row each, and who computes them. The
// coordinator's planner divides them, for several draws of the experts.
class DividedDecode {
 public:
  DividedDecode(const PredictionInput& input, int64_t layer) {
    const std::vector<EnginePlace> others = OthersOf(input, layer);
    const ExpertLayout& record = input.arena.layer(layer);
    std::vector<int32_t> experts(input.arena.num_experts());
    std::iota(experts.begin(), experts.end(), 0);
    std::mt19937_64 random(kPredictionSeed);
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