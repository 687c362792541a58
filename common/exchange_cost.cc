#include "common/exchange_cost.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/time/clock.h"

namespace ferry {
namespace {

constexpr int kSmallProbes = 15, kCountedProbe = 2;  // the third fastest counts
// Larger ones until one takes so long: a shaped network lets a few megabytes pass at any rate before it shows its own.
constexpr int kLargeProbes = 2;  // of each size; the faster one counts
constexpr int64_t kLargeProbeRows = 16, kNextLarger = 4;
constexpr double kLongProbeSeconds = 50e-3;
constexpr absl::Duration kBetweenProbes = absl::Milliseconds(1);  // as in decode, where threads have fallen asleep by then

}  // namespace

absl::StatusOr<ExchangeCost> MeasureExchange(int64_t most_rows,
                                             const std::function<absl::StatusOr<double>(int64_t rows)>& probe) {
  std::vector<double> small;
  for (int i = 0; i < kSmallProbes; ++i) {
    absl::SleepFor(kBetweenProbes);
    ASSIGN_OR_RETURN(const double seconds, probe(1));
    small.push_back(seconds);
  }
  // Beside other programs the median measures those: 16 ms between two busy cores where steps then saw less than 0.2.
  std::nth_element(small.begin(), small.begin() + kCountedProbe, small.end());
  const double one_row = small[kCountedProbe];
  double row_seconds = 0;
  for (int64_t many = std::min(kLargeProbeRows, most_rows); many > 1; many = std::min(kNextLarger * many, most_rows)) {
    double many_rows = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kLargeProbes; ++i) {
      absl::SleepFor(kBetweenProbes);
      ASSIGN_OR_RETURN(const double seconds, probe(many));
      many_rows = std::min(many_rows, seconds);
    }
    row_seconds = std::max(0.0, many_rows - one_row) / static_cast<double>(2 * (many - 1));  // they go there and come back
    if (many_rows - one_row > kLongProbeSeconds || many == most_rows) break;
  }
  return ExchangeCost{.exchange_seconds = std::max(0.0, one_row - 2 * row_seconds), .row_seconds = row_seconds};
}

}  // namespace ferry
