#pragma once

// Checks a worker's answer against the step that it answers. The coordinator trusts the numbers that a worker computed, and
// checks counts, sizes and ids before it uses them.

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

// Returns the logits, one result for each wanted row. Internal: the answer is to another step, or does not fit the request. When
// the worker answered with an error, returns its code, the worker's number, and kMaxErrorBytes of its message.
absl::StatusOr<std::vector<LogitsResult>> CheckStepResponse(const internal::v1::StepResponse& response,
                                                            const StepExpectation& expected);
inline constexpr size_t kMaxSpanName = 64;
inline constexpr size_t kMaxErrorBytes = 1024;  // gRPC carries a status in its metadata, which holds 8 KiB

}  // namespace ferry
