#pragma once

// How a layer's experts are placed on devices and on the host: the user's rules, the thresholds that both the runtime and its
// predictions use, and conclusions from the plan of one layer for the next.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "common/shm/expert_mailbox.h"

namespace ferry {

// Where a layer's experts may be computed, by -ot.
enum class ExpertRule { kAny, kHost, kDevice };

// Steps of at most this many rows (decode) are placed without asking the planner.
inline constexpr int64_t kMaxRowsWithoutPlan = 8;
// Copies before a layer's routing is known (worker/expert_forecast.h): in steps of at least kMinRowsToForecast rows, of experts
// that the step uses with at least this probability.
inline constexpr int64_t kMinRowsToForecast = 9;
inline constexpr double kCertainUse = 0.9;
// How many of `experts` that will certainly be needed a link copies ahead where so many helpers may copy the others. That is more
// than an even share: a helper begins after the routing, this link before it.
inline int64_t ShareBesideHelpers(int64_t experts, int64_t helpers) {
  constexpr double kMoreThanEven = 1.15;
  return std::min(
      experts, static_cast<int64_t>(std::ceil(kMoreThanEven * static_cast<double>(experts) / static_cast<double>(1 + helpers))));
}

// The fewest tokens with which the plan sent an expert that had not arrived to the worker's device; 0 when it left none to the
// host or to helpers. `places`: one for each of `uses`. In the next layer, an expert that expects fewer tokens is not worth a
// copy before the routing is known.
inline int64_t TokensWorthACopy(std::span<const ActivatedExpert> uses, std::span<const ExpertPlace> places) {
  int64_t fewest_here = std::numeric_limits<int64_t>::max(), most_elsewhere = 0;
  for (size_t i = 0; i < uses.size(); ++i) {
    if (places[i] == ExpertPlace::kHost || IsHelper(places[i])) {
      most_elsewhere = std::max<int64_t>(most_elsewhere, uses[i].tokens);
    } else if (uses[i].resident != 1) {
      fewest_here = std::min<int64_t>(fewest_here, uses[i].tokens);
    }
  }
  return most_elsewhere == 0 ? 0 : std::min(fewest_here, most_elsewhere + 1);
}

}  // namespace ferry
