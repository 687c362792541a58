#pragma once

// Rows through an ActivationSink, as a stage sends them.

#include <algorithm>
#include <span>

#include "common/deadline.h"
#include "common/status.h"
#include "worker/stage_link.h"

namespace ferry {

inline absl::Status SendRows(ActivationSink& sink, uint64_t step, std::span<const float> values, int64_t n_embd,
                             Deadline deadline) {
  for (int64_t row = 0; row * n_embd < static_cast<int64_t>(values.size());) {
    const std::span<const float> left = values.subspan(row * n_embd);
    ASSIGN_OR_RETURN(const std::span<float> part, sink.Reserve(static_cast<int64_t>(left.size()) / n_embd, deadline));
    std::copy_n(left.begin(), part.size(), part.begin());
    RETURN_IF_ERROR(sink.Send(step, row, deadline));
    row += static_cast<int64_t>(part.size()) / n_embd;
  }
  return absl::OkStatus();
}

}  // namespace ferry
