#pragma once

// Measures how fast a backend computes experts, with its own kernels on records of the model's own layout. Plans divide by these
// rates.

#include <cstddef>
#include <span>

#include "absl/time/time.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "kernels/expert_seconds.h"
#include "kernels/ops.h"

namespace ferry {

struct ExpertRatesOptions {
  absl::Duration time = absl::Milliseconds(150);  // of each of the two; no less than a few calls
  int64_t read_bytes = int64_t{128} << 20;        // of one call; the next call takes the next records, past the last cache
  int64_t many_rows = 64;                         // of one expert: from about 32 on a CPU's products are bound by arithmetic
  int64_t many_row_experts = 4;
  bool curve = false;  // ExpertRates::flops_at_rows too; each of its points takes a quarter of `time`
};

// `records` lie in the memory of `ops`, and are together several times the last cache if the read rate is to mean memory: no
// record is read again before all others. The read rate is the median of the calls. The rate of products is the one that one
// call in ten exceeds: on a busy machine the median measures the other processes too, 22 instead of 500 GFLOP/s in one start on
// two shared cores. InvalidArgument: no records.
absl::StatusOr<ExpertRates> MeasureExperts(Ops& ops, const ExpertLayout& layout, std::span<const std::byte* const> records,
                                           const ExpertRatesOptions& options);

// The same before a model is loaded, on made-up records of 512 MiB in all.
absl::StatusOr<ExpertRates> MeasureExpertsOn(Ops& ops, const ExpertLayout& layout, const ExpertRatesOptions& options);

// Seconds of a small operation, the norm of one row of `cols` values, behind others of its kind: on a GPU decode is a chain of
// such.
absl::StatusOr<double> MeasureOperation(Ops& ops, int64_t cols);

// Bytes a second of copies of `bytes_per_copy` from host memory, pinned where the backend can, to the memory of `ops`.
absl::StatusOr<double> MeasureCopies(Ops& ops, int64_t bytes_per_copy, absl::Duration time);

}  // namespace ferry
