#include "coordinator/experts/expert_planner.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

namespace ferry {
namespace {

// Seconds the host takes for one expert of n tokens. On an H100's host without a curve (119 GB/s, 3,745 GFLOP/s beside the links)
// 29 to 45 experts of 153 to 451 rows took 7 to 11 % less than this.
double HostSeconds(const PlannerInput& input, int64_t tokens) {
  return ExpertSeconds(input.rates.host, input.bytes_per_expert, input.flops_per_token, tokens);
}

bool Known(const ExpertRates& rates) { return rates.read_bytes_per_second > 0 && rates.flops_per_second > 0; }
bool RatesKnown(const PlannerRates& rates) { return rates.link_bytes_per_second > 0 && Known(rates.host); }

// The host's engine as one of the places, the first.
EnginePlace HostPlace(const PlannerInput& input) {
  EnginePlace host = {.rates = input.rates.host, .memory = 0};
  for (const EnginePlace& other : input.others) {
    if (other.memory == 0) host.memory_bytes_per_second = std::max(host.memory_bytes_per_second, other.memory_bytes_per_second);
  }
  return host;
}

// What one engine has been given so far.
struct EngineLoad {
  double seconds = 0;  // of reading and multiplying
  int64_t tokens = 0;  // contributions that it sends back
};

// Engines and their loads while uses are handed out.
class EngineDivision {
 public:
  explicit EngineDivision(const PlannerInput& input) : input_(input) {
    engines_.push_back(HostPlace(input));
    engines_.insert(engines_.end(), input.others.begin(), input.others.end());
    order_.push_back(0);
    for (size_t i = 1; i < engines_.size(); ++i) {
      if (Known(engines_[i].rates)) order_.push_back(i);
    }
    const auto cost = [&](size_t i) {
      return engines_[i].exchange_seconds + 2 * engines_[i].row_seconds +
             input.bytes_per_expert / engines_[i].rates.read_bytes_per_second;
    };
    std::stable_sort(order_.begin() + 1, order_.end(), [&](size_t a, size_t b) { return cost(a) < cost(b); });
  }

  // Divides `uses`, indices of input.uses, heaviest first. The engine of each, and the time until the last has answered.
  struct Result {
    std::vector<int32_t> engines;
    double seconds = 0;
  };
  Result Divide(std::span<const size_t> uses) const {
    Result best = DivideAmong(uses, 1);
    for (size_t count = 2; count <= order_.size(); ++count) {
      Result next = DivideAmong(uses, count);
      if (next.seconds < best.seconds) best = std::move(next);
    }
    return best;
  }

 private:
  Result DivideAmong(std::span<const size_t> uses, size_t count) const {
    Result result;
    std::vector<EngineLoad> loads(engines_.size());
    std::vector<double> memory_seconds(engines_.size());  // by engine: of what all engines of its memory read
    for (const size_t use : uses) {
      const int32_t expert = input_.uses[use].expert;
      const int64_t tokens = input_.uses[use].tokens;
      size_t chosen = 0;
      double soonest = 0;
      for (size_t i = 0; i < count; ++i) {
        const size_t engine = order_[i];
        if (!MayTake(engine, loads[engine], expert, tokens)) continue;
        const double end = EndWith(engine, loads[engine], memory_seconds[engine], tokens);
        if (i == 0 || end < soonest) {
          chosen = engine;
          soonest = end;
        }
      }
      loads[chosen].seconds += Seconds(engines_[chosen], tokens);
      loads[chosen].tokens += tokens;
      for (size_t i = 0; i < engines_.size(); ++i) {
        if (engines_[i].memory == engines_[chosen].memory) memory_seconds[i] += MemorySeconds(i);
      }
      result.engines.push_back(static_cast<int32_t>(chosen));
    }
    for (size_t i = 0; i < engines_.size(); ++i) {
      if (loads[i].tokens > 0)
        result.seconds = std::max({result.seconds, loads[i].seconds + Transfer(i, loads[i].tokens), memory_seconds[i]});
    }
    return result;
  }

  bool MayTake(size_t engine, const EngineLoad& load, int32_t expert, int64_t tokens) const {
    if (engine == 0) return true;
    const EnginePlace& place = engines_[engine];
    if (load.tokens + tokens > place.max_entries) return false;
    return place.holds == nullptr || (static_cast<size_t>(expert) < place.holds->size() && (*place.holds)[expert]);
  }
  double Seconds(const EnginePlace& engine, int64_t tokens) const {
    return ExpertSeconds(engine.rates, input_.bytes_per_expert, input_.flops_per_token, tokens);
  }
  double MemorySeconds(size_t engine) const {
    const double rate = engines_[engine].memory_bytes_per_second;
    return rate > 0 ? input_.bytes_per_expert / rate : 0;
  }
  // Of an exchange: each row goes there once, every contribution comes back.
  double Transfer(size_t engine, int64_t tokens) const {
    const EnginePlace& place = engines_[engine];
    const int64_t rows = input_.num_rows > 0 ? std::min(input_.num_rows, tokens) : tokens;
    return place.exchange_seconds + static_cast<double>(rows + tokens) * place.row_seconds;
  }
  double EndWith(size_t engine, const EngineLoad& load, double memory_seconds, int64_t tokens) const {
    return std::max(load.seconds + Seconds(engines_[engine], tokens) + Transfer(engine, load.tokens + tokens),
                    memory_seconds + MemorySeconds(engine));
  }

  const PlannerInput& input_;
  std::vector<EnginePlace> engines_;
  std::vector<size_t> order_;  // those that may be used, the host's first, then the fastest
};

// How many of `absent` to ship, at least `least`: shipping more than that takes longer, and the rest shorter, so the best number
// is next to where they cross. `shipping` and `rest`: seconds, by the number shipped.
template <typename Shipping, typename Rest>
size_t BestShipped(size_t least, size_t absent, const Shipping& shipping, const Rest& rest) {
  size_t low = least, high = absent;  // at `high` the copies take at least as long as the rest
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (shipping(middle) >= rest(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  if (low == least) return least;
  return rest(low - 1) <= std::max(shipping(low), rest(low)) ? low - 1 : low;
}

// Seconds a device computes experts of so many tokens together.
double DeviceSeconds(const PlannerInput& input, double flops_per_second, int64_t tokens) {
  return flops_per_second > 0 ? static_cast<double>(tokens) * input.flops_per_token / flops_per_second : 0;
}

// Tokens of the experts that the worker has.
int64_t ResidentTokens(const PlannerInput& input) {
  int64_t tokens = 0;
  for (const ActivatedExpert& use : input.uses) tokens += use.resident == 1 ? use.tokens : 0;
  return tokens;
}

// The worker's own link and those of its helpers while uses are handed out.
class LinkDivision {
 public:
  explicit LinkDivision(const PlannerInput& input) : input_(input), resident_tokens_(ResidentTokens(input)) {
    for (size_t i = 0; i < input.helpers.size(); ++i) {
      if (input.helpers[i].link_bytes_per_second > 0) order_.push_back(i);
    }
    const auto cost = [&](size_t i) { return Start(i) + input.bytes_per_expert / input.helpers[i].link_bytes_per_second; };
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return cost(a) < cost(b); });
  }

  size_t num_helpers() const { return order_.size(); }

  // Divides `uses`, indices of input.uses, heaviest first, among the own link and the `count` quickest helpers. The helper of
  // each, -1 for the own link, and the time until the last has answered.
  struct Result {
    std::vector<int32_t> helpers;
    double seconds = 0;
  };
  Result Divide(std::span<const size_t> uses, size_t count) const {
    // What is on its way already stays with the own link.
    std::vector<size_t> order(uses.size());
    std::iota(order.begin(), order.end(), 0);
    const auto first =
        std::stable_partition(order.begin(), order.end(), [&](size_t at) { return input_.uses[uses[at]].resident == kComing; });
    const size_t num_coming = first - order.begin();
    std::vector<int64_t> tokens(order.size() + 1, resident_tokens_);  // on this device, by how many of `order` come here
    for (size_t i = 0; i < order.size(); ++i) tokens[i + 1] = tokens[i] + input_.uses[uses[order[i]]].tokens;
    const auto own = [&](size_t number) { return OwnSeconds(num_coming + number, tokens[num_coming + number]); };
    const auto others = [&](size_t number) {
      return HelperSeconds(uses, std::span(order).subspan(num_coming + number), count, nullptr);
    };
    const size_t number = BestShipped(0, order.size() - num_coming, own, others);
    Result result = {.helpers = std::vector<int32_t>(uses.size(), -1), .seconds = own(number)};
    const std::span<const size_t> left = std::span(order).subspan(num_coming + number);
    result.seconds = std::max(result.seconds, HelperSeconds(uses, left, count, &result.helpers));
    return result;
  }

 private:
  // Of this worker, which copies so many experts and computes so many tokens.
  double OwnSeconds(size_t copies, int64_t tokens) const {
    const double copy = input_.bytes_per_expert / input_.rates.link_bytes_per_second;
    return std::max(static_cast<double>(copies) * copy, DeviceSeconds(input_, input_.rates.device_flops_per_second, tokens));
  }

  // What a helper takes before its first copy.
  double Start(size_t i) const {
    return input_.helpers[i].fixed_seconds + static_cast<double>(input_.num_rows) * input_.helpers[i].row_seconds;
  }

  // Gives those of `uses` that `left` counts to the `count` quickest helpers, each to the one that would end first with it. The
  // time until the last has answered; infinite when they may not take so many tokens. `helpers`: by use, or null.
  double HelperSeconds(std::span<const size_t> uses, std::span<const size_t> left, size_t count,
                       std::vector<int32_t>* helpers) const {
    std::vector<double> ends(input_.helpers.size());
    std::vector<int64_t> computed(input_.helpers.size());  // tokens
    int64_t tokens_left = input_.max_helper_tokens;
    double last = 0;
    for (const size_t at : left) {
      const int64_t tokens = input_.uses[uses[at]].tokens;
      tokens_left -= tokens;
      size_t chosen = 0;
      double soonest = std::numeric_limits<double>::infinity();
      for (const size_t i : std::span(order_).first(count)) {
        const HelperPlace& helper = input_.helpers[i];
        const double copied = (ends[i] > 0 ? ends[i] : Start(i)) + input_.bytes_per_expert / helper.link_bytes_per_second +
                              static_cast<double>(tokens) * helper.contribution_seconds;
        const double end = std::max(copied, Start(i) + DeviceSeconds(input_, helper.flops_per_second, computed[i] + tokens));
        if (end < soonest) {
          chosen = i;
          soonest = end;
        }
      }
      ends[chosen] = soonest;
      computed[chosen] += tokens;
      last = std::max(last, soonest);
      if (helpers != nullptr) (*helpers)[at] = static_cast<int32_t>(chosen);
    }
    return tokens_left < 0 ? std::numeric_limits<double>::infinity() : last;
  }

  const PlannerInput& input_;
  const int64_t resident_tokens_;
  std::vector<size_t> order_;  // helpers whose rates are known, the quickest first
};

// The seconds that the host and further engines take for `absent` without the first of them, by how many those are, until the
// worker has their contributions.
class RestSeconds {
 public:
  RestSeconds(const PlannerInput& input, const EngineDivision* division, std::span<const size_t> absent)
      : input_(input), division_(division), absent_(absent), tokens_(absent.size() + 1), host_(absent.size() + 1) {
    for (size_t i = absent.size(); i-- > 0;) {
      tokens_[i] = tokens_[i + 1] + input.uses[absent[i]].tokens;
      if (division == nullptr) host_[i] = host_[i + 1] + HostSeconds(input, input.uses[absent[i]].tokens);
    }
  }
  double operator()(size_t shipped) const {
    return (division_ != nullptr ? division_->Divide(absent_.subspan(shipped)).seconds : host_[shipped]) +
           ShareSeconds(input_.way, input_.num_rows, tokens_[shipped]);
  }
  // Of that, while no record comes.
  double Contributions(size_t shipped) const { return ContributionSeconds(input_.way, tokens_[shipped]); }

 private:
  const PlannerInput& input_;
  const EngineDivision* const division_;
  const std::span<const size_t> absent_;
  std::vector<double> tokens_, host_;  // of the rest
};

// The experts that are not resident, heaviest first; ties to the lower id, so that equal inputs give equal plans.
std::vector<size_t> HeaviestAbsent(const PlannerInput& input) {
  std::vector<size_t> absent;
  for (size_t i = 0; i < input.uses.size(); ++i) {
    if (input.uses[i].resident != 1) absent.push_back(i);
  }
  std::stable_sort(absent.begin(), absent.end(), [&](size_t a, size_t b) { return input.uses[a].tokens > input.uses[b].tokens; });
  return absent;
}

// How many of `absent` to ship without helpers, the first ones. `division`: null where the host alone computes the rest.
size_t ShippedAlone(const PlannerInput& input, const EngineDivision* division, std::span<const size_t> absent) {
  if (input.ship_all || !input.host_allowed || !RatesKnown(input.rates)) return absent.size();
  const double copy_seconds = input.bytes_per_expert / input.rates.link_bytes_per_second;
  const RestSeconds rest(input, division, absent);
  // The heaviest ones, whose contributions would take longer on the way than their records.
  const auto least = std::partition_point(absent.begin(), absent.end(), [&](size_t use) {
    return ContributionSeconds(input.way, input.uses[use].tokens) > copy_seconds;
  });
  return BestShipped(
      static_cast<size_t>(least - absent.begin()), absent.size(),
      [&](size_t shipped) { return static_cast<double>(shipped) * copy_seconds + rest.Contributions(shipped); }, rest);
}

// How many of `absent` to ship, and by which links, when helpers make the layer shorter; nullopt: they do not. `alone`: how many
// are shipped without them. `host`: the rest may be computed by engines.
struct HelpedPlan {
  size_t num_shipped = 0;
  LinkDivision::Result links;
};
std::optional<HelpedPlan> PlanWithHelpers(const PlannerInput& input, const EngineDivision* division,
                                          std::span<const size_t> absent, size_t alone, bool host) {
  const LinkDivision links(input);
  if (links.num_helpers() == 0 || absent.empty()) return std::nullopt;
  const RestSeconds rest(input, division, absent);
  double best = std::max(links.Divide(absent.first(alone), 0).seconds, host ? rest(alone) : 0);
  std::optional<HelpedPlan> plan;
  for (size_t count = 1; count <= links.num_helpers(); ++count) {
    const auto shipping = [&](size_t shipped) { return links.Divide(absent.first(shipped), count).seconds; };
    const size_t shipped = host ? BestShipped(0, absent.size(), shipping, rest) : absent.size();
    const double seconds = std::max(shipping(shipped), host ? rest(shipped) : 0);
    if (!(seconds < kWorthHelp * best)) continue;
    best = seconds;
    plan = {.num_shipped = shipped, .links = links.Divide(absent.first(shipped), count)};
  }
  return plan;
}

}  // namespace

HelperPlace PlaceOf(const HelperWay& way, double row_bytes) {
  // Of a request and its answer, beside rows, copies and contributions: the threads of both sleep. From device to device nothing
  // waits for copies on the links.
  constexpr double kHelpSeconds = 300e-6, kHelpOnDeviceSeconds = 150e-6;
  constexpr double kDeviceToDevice = 100e9;  // bytes a second by a kernel over NVLink; slower ways are not taken (help_share.h)
  HelperPlace place = {.link_bytes_per_second = way.link_bytes_per_second, .flops_per_second = way.flops_per_second};
  if (way.device_to_device) {
    place.fixed_seconds = kHelpOnDeviceSeconds;
    place.row_seconds = row_bytes / kDeviceToDevice;
    // A contribution is read once more, by its owner, when all have come.
    place.contribution_seconds = row_bytes / kDeviceToDevice;
  } else {
    place.fixed_seconds = kHelpSeconds;
    place.row_seconds = row_bytes / way.own_link_bytes_per_second + row_bytes / way.link_bytes_per_second;
    place.contribution_seconds = row_bytes / way.own_link_bytes_per_second;
  }
  return place;
}

ExpertPlan PlanExperts(const PlannerInput& input) {
  ExpertPlan plan;
  plan.places.assign(input.uses.size(), ExpertPlace::kHost);
  const std::vector<size_t> absent = HeaviestAbsent(input);
  for (size_t i = 0; i < input.uses.size(); ++i) {
    if (input.uses[i].resident == 1) plan.places[i] = ExpertPlace::kResident;
  }
  const bool can_ship = input.num_slots > 0 && input.ship_allowed;
  const bool several = !input.others.empty() && Known(input.rates.host);
  const std::optional<EngineDivision> division = several ? std::make_optional<EngineDivision>(input) : std::nullopt;
  size_t num_shipped = can_ship ? ShippedAlone(input, division ? &*division : nullptr, absent) : 0;

  const bool host = input.host_allowed && !input.ship_all;
  std::optional<HelpedPlan> helped;
  if (can_ship && input.rates.link_bytes_per_second > 0 && (!host || Known(input.rates.host))) {
    helped = PlanWithHelpers(input, division ? &*division : nullptr, absent, num_shipped, host);
  }
  if (helped) {
    num_shipped = helped->num_shipped;
    plan.helpers.assign(input.uses.size(), -1);
    for (size_t rank = 0; rank < num_shipped; ++rank) plan.helpers[absent[rank]] = helped->links.helpers[rank];
  }
  for (size_t rank = 0; rank < num_shipped; ++rank) {
    const bool by_helper = helped && helped->links.helpers[rank] >= 0;
    const bool coming = !by_helper && input.uses[absent[rank]].resident == kComing;
    plan.places[absent[rank]] = coming ? ExpertPlace::kResident : ExpertPlace::kShip;
  }
  const std::span<const size_t> left = std::span(absent).subspan(num_shipped);
  if (division) {
    const EngineDivision::Result result = division->Divide(left);
    plan.engines.assign(input.uses.size(), 0);
    for (size_t i = 0; i < left.size(); ++i) plan.engines[left[i]] = result.engines[i];
    plan.engine_seconds = result.seconds;
  }

  if (helped) {
    plan.link_seconds = helped->links.seconds;
  } else if (input.rates.link_bytes_per_second > 0) {
    plan.link_seconds = static_cast<double>(num_shipped) * input.bytes_per_expert / input.rates.link_bytes_per_second;
  }
  if (!Known(input.rates.host)) return plan;
  for (const size_t i : left) {
    if (plan.engines.empty() || plan.engines[i] == 0) plan.host_seconds += HostSeconds(input, input.uses[i].tokens);
  }
  return plan;
}

}  // namespace ferry
