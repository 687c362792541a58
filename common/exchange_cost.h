#pragma once

// What an exchange with an engine of another host costs beside its computation, measured with requests that compute nothing.

#include <cstdint>
#include <functional>

#include "common/status.h"

namespace ferry {

// Zeros: both ends share memory, or it was not measured.
struct ExchangeCost {
  double exchange_seconds = 0;  // of a request and its answer without rows
  double row_seconds = 0;       // of each row, either way
};

// Calls `probe(rows)` several times, with 1 to `most_rows` rows. The probe sends that many rows, gets as many back, and returns
// the seconds that this took. Errors of `probe`.
absl::StatusOr<ExchangeCost> MeasureExchange(int64_t most_rows, const std::function<absl::StatusOr<double>(int64_t rows)>& probe);

}  // namespace ferry
