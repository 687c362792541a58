#include "coordinator/experts/expert_planner.h"

#include <algorithm>
#include <numeric>

namespace ferry {
namespace {

// Seconds the host takes for one expert of n tokens: reading it, in which the first row is multiplied, and the other rows. On an
// H100's host (119 GB/s, 3,745 GFLOP/s beside the links) 29 to 45 experts of 153 to 451 rows took 7 to 11 % less than this.
double HostSeconds(const PlannerInput& input, int64_t tokens) {
  const double read = input.bytes_per_expert / input.rates.host_read_bytes_per_second;
  return read + static_cast<double>(tokens - 1) * input.flops_per_token / input.rates.host_flops_per_second;
}

bool HostRatesKnown(const PlannerRates& rates) { return rates.host_read_bytes_per_second > 0 && rates.host_flops_per_second > 0; }
bool RatesKnown(const PlannerRates& rates) { return rates.link_bytes_per_second > 0 && HostRatesKnown(rates); }

}  // namespace

ExpertPlan PlanExperts(const PlannerInput& input) {
  ExpertPlan plan;
  plan.places.assign(input.uses.size(), ExpertPlace::kHost);

  // The experts that are not resident, heaviest first; ties to the lower id, so that equal inputs give equal plans.
  std::vector<size_t> absent;
  for (size_t i = 0; i < input.uses.size(); ++i) {
    if (input.uses[i].resident == 1) {
      plan.places[i] = ExpertPlace::kResident;
    } else {
      absent.push_back(i);
    }
  }
  std::stable_sort(absent.begin(), absent.end(), [&](size_t a, size_t b) { return input.uses[a].tokens > input.uses[b].tokens; });

  const bool can_ship = input.num_slots > 0 && input.ship_allowed;
  size_t num_shipped = 0;
  if (!can_ship) {
    num_shipped = 0;
  } else if (input.ship_all || !input.host_allowed || !RatesKnown(input.rates)) {
    num_shipped = absent.size();
  } else {
    // Shipping the s heaviest takes s * bytes / link; the host takes the rest. The first grows and the second shrinks with s,
    // so the best s is next to where they cross: try all, the list is at most num_experts long.
    const double copy_seconds = input.bytes_per_expert / input.rates.link_bytes_per_second;
    double host_seconds = 0;
    for (const size_t i : absent) host_seconds += HostSeconds(input, input.uses[i].tokens);
    double best = host_seconds;
    double rest = host_seconds;
    for (size_t shipped = 1; shipped <= absent.size(); ++shipped) {
      rest -= HostSeconds(input, input.uses[absent[shipped - 1]].tokens);
      const double makespan = std::max(static_cast<double>(shipped) * copy_seconds, rest);
      if (makespan < best) {
        best = makespan;
        num_shipped = shipped;
      }
    }
  }
  for (size_t rank = 0; rank < absent.size(); ++rank) {
    const bool coming = input.uses[absent[rank]].resident == kComing;
    if (rank < num_shipped) plan.places[absent[rank]] = coming ? ExpertPlace::kResident : ExpertPlace::kShip;
  }

  if (input.rates.link_bytes_per_second > 0) {
    plan.link_seconds = static_cast<double>(num_shipped) * input.bytes_per_expert / input.rates.link_bytes_per_second;
  }
  if (HostRatesKnown(input.rates)) {
    for (size_t rank = num_shipped; rank < absent.size(); ++rank) {
      plan.host_seconds += HostSeconds(input, input.uses[absent[rank]].tokens);
    }
  }
  return plan;
}

}  // namespace ferry
