#pragma once

// What sampling needs of a row of logits, read off on the device: the log of the sum of exponentials, one wanted logit,
// and the best few in order. Only these cross to the host.

#include "kernels/cuda/launch.h"

namespace ferry::cuda {

inline constexpr int64_t kMaxTopLogits = 2048;  // sorted in shared memory; for more, the whole row is downloaded

struct RowRequest {
  int32_t row = 0;      // of the logits
  int32_t top_n = 0;    // at most max_top
  int32_t target = -1;  // -1: none
};
struct RowSummary {
  float log_sum_exp = 0;
  float target_logit = 0;  // 0 without a target
};
struct RankedLogit {
  int32_t id = 0;
  float logit = 0;
};

struct SummarizeArgs {
  DeviceRows logits;                     // F32
  const RowRequest* requests = nullptr;  // device, [num_requests]
  int64_t num_requests = 0;
  int64_t max_top = 0;              // largest top_n, at most kMaxTopLogits and at most logits.cols
  RowSummary* summaries = nullptr;  // device, [num_requests]
  RankedLogit* best = nullptr;      // device, [num_requests, max_top]: best first, ties to the lower id, NaN last
  void* workspace = nullptr;        // SummarizeWorkspaceBytes(...), 16-byte aligned
};
// A row's sums are F32, in an order that depends on cols alone.
cudaError_t LaunchSummarize(const SummarizeArgs& args, cudaStream_t stream);
int64_t SummarizeWorkspaceBytes(int64_t num_requests, int64_t cols, int64_t max_top);

}  // namespace ferry::cuda
