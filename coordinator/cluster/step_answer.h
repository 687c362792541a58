#pragma once

// A worker's answer to a step, checked against the step it answers. A worker is trusted with the numbers it computed and with
// nothing else: counts, sizes and ids are compared before they are used.

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"
#include "kernels/ops.h"

namespace ferry {

// The oldest step that a worker has not answered.
struct StepExpectation {
  WorkerId worker;
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::span<const LogitsRequest> wanted;  // rows of logits in order; empty for every worker but the last
  int64_t vocab_size = 0;
};

// The logits, one result a wanted row. Internal: not an answer to that step, or not what it asked for. An error of the
// worker's own comes back with its code and the worker's number before its words, of which kMaxErrorBytes are kept.
absl::StatusOr<std::vector<LogitsResult>> CheckStepResponse(const internal::v1::StepResponse& response,
                                                            const StepExpectation& expected);
inline constexpr size_t kMaxSpanName = 64;
inline constexpr size_t kMaxErrorBytes = 1024;  // gRPC carries a status in its metadata, which holds 8 KiB

}  // namespace ferry
