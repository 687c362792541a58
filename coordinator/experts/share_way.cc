#include "coordinator/experts/share_way.h"

#include <algorithm>
#include <cmath>

namespace ferry {

double ContributionSeconds(const ShareWay& way, double entries) { return entries * way.cost.row_seconds; }

double ShareSeconds(const ShareWay& way, int64_t rows, double entries) {
  if (entries <= 0) return 0;
  const double requests = std::ceil(entries / static_cast<double>(way.max_entries));
  // A row goes along once with each request that has an entry of it.
  const auto all_rows = static_cast<double>(std::max<int64_t>(rows, 1));
  const double sent = -requests * all_rows * std::expm1(-entries / requests / all_rows);
  // No request has more rows than max_rows: so many rows need as many requests at least.
  const double of_rows = std::ceil(sent / static_cast<double>(way.max_rows));
  return std::max(requests, of_rows) * way.cost.exchange_seconds + sent * way.cost.row_seconds +
         ContributionSeconds(way, entries);
}

}  // namespace ferry
