#include "coordinator/planning/network_costs.h"

#include <algorithm>

#include "common/expert_wire.h"

namespace ferry {
namespace {

double RowBytes(int64_t n_embd) { return static_cast<double>(n_embd) * sizeof(float); }

}  // namespace

ShareWay WayOf(const WorkerNetwork& worker, const HostShareSize& share) {
  if (worker.host == 0) return {};
  const MailboxShape most = ShapeOfDataConnection(
      {.n_embd = share.n_embd, .max_rows = share.most_rows, .max_entries = share.most_rows * share.top_k, .max_experts = 0});
  return {.cost = {.exchange_seconds = worker.exchange_seconds, .row_seconds = RowBytes(share.n_embd) / worker.bytes_per_second},
          .max_rows = most.max_rows,
          .max_entries = most.max_entries};
}

double ContributionSeconds(const WorkerNetwork& worker, const HostShareSize& share) {
  return ContributionSeconds(WayOf(worker, share), share.entries);
}

double HostShareSeconds(const WorkerNetwork& worker, const HostShareSize& share) {
  return ShareSeconds(WayOf(worker, share), share.rows, share.entries);
}

double HiddenStatesSeconds(const WorkerNetwork& from, const WorkerNetwork& to, int64_t rows, int64_t n_embd) {
  if (from.host == to.host) return 0;
  const double exchange = std::max(from.exchange_seconds, to.exchange_seconds);
  const double rate = from.host == 0 ? to.bytes_per_second
                      : to.host == 0 ? from.bytes_per_second
                                     : std::min(from.bytes_per_second, to.bytes_per_second);
  return exchange / 2 + static_cast<double>(rows) * RowBytes(n_embd) / rate;
}

}  // namespace ferry
