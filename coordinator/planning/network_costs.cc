#include "coordinator/planning/network_costs.h"

#include <algorithm>
#include <cmath>

#include "common/expert_wire.h"

namespace ferry {
namespace {

double RowBytes(int64_t n_embd) { return static_cast<double>(n_embd) * sizeof(float); }

}  // namespace

double ContributionSeconds(const WorkerNetwork& worker, const HostShareSize& share) {
  return worker.host == 0 ? 0 : share.entries * RowBytes(share.n_embd) / worker.bytes_per_second;
}

double HostShareSeconds(const WorkerNetwork& worker, const HostShareSize& share) {
  if (worker.host == 0 || share.entries <= 0) return 0;
  const MailboxShape most = ShapeOfDataConnection(
      {.n_embd = share.n_embd, .max_rows = share.most_rows, .max_entries = share.most_rows * share.top_k, .max_experts = 0});
  const double requests = std::ceil(share.entries / static_cast<double>(most.max_entries));
  // A row goes along once with each request that has an entry of it.
  const auto rows = static_cast<double>(std::max<int64_t>(share.rows, 1));
  const double sent = requests * rows * (1 - std::exp(-share.entries / requests / rows));
  // No request has more rows than most.max_rows: so many rows need as many requests at least.
  const double of_rows = std::ceil(sent / static_cast<double>(most.max_rows));
  return std::max(requests, of_rows) * worker.exchange_seconds + sent * RowBytes(share.n_embd) / worker.bytes_per_second +
         ContributionSeconds(worker, share);
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
