#pragma once

// The way between a worker and the coordinator's engines, which compute a share of its layers: what it costs where a network is
// between them. Pure functions, for the planner and for predictions alike. Without a network they are 0.

#include <cstdint>

#include "common/exchange_cost.h"

namespace ferry {

// The worker sends its share in requests of at most `max_rows` rows and `max_entries` (row, expert) pairs, one after the other
// (worker/host_share.h).
struct ShareWay {
  ExchangeCost cost;
  int64_t max_rows = INT64_MAX, max_entries = INT64_MAX;
};

// Of a share of `entries` pairs of at most `rows` rows: its rows go there, and a contribution of each pair comes back.
double ShareSeconds(const ShareWay& way, int64_t rows, double entries);
// Of that, the part during which nothing else can come to the worker: its contributions.
double ContributionSeconds(const ShareWay& way, double entries);

}  // namespace ferry
