#pragma once

// The compute queue of a device. It names the operation in the errors of queueing and of waiting, and records its timeline.

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <utility>

#include "common/deadline.h"
#include "common/status.h"
#include "kernels/cuda/copy_engine.h"
#include "kernels/cuda/cuda_handles.h"
#include "kernels/cuda/cuda_timeline.h"

namespace ferry::cuda {

// One thread.
class ComputeQueue {
 public:
  // `device_name` is for messages: "cuda:0 (NVIDIA H100)". `timeline` outlives this.
  static absl::StatusOr<ComputeQueue> Create(std::string device_name, CudaTimeline* timeline) {
    ComputeQueue queue;
    queue.device_name_ = std::move(device_name);
    queue.timeline_ = timeline;
    ASSIGN_OR_RETURN(queue.stream_, Stream::Create());
    return queue;
  }
  ComputeQueue() = default;

  cudaStream_t get() const { return stream_.get(); }

  // A span of the timeline from construction to destruction. `op` is a string literal, here and below.
  CudaTimeline::Scope SpanOf(const char* op) const {
    return CudaTimeline::Scope(*timeline_, op, TimelineSpan::Queue::kCompute, stream_.get());
  }
  // The result of queueing `op` as a Status. An error may be that of an earlier operation; the message names the last one queued.
  absl::Status Queued(const char* op, cudaError_t error) {
    const absl::Status status = Seen(op, error);
    if (status.ok()) last_ = op;
    return status;
  }
  // The same for a call that queues nothing.
  absl::Status Seen(const char* op, cudaError_t error) const {
    return error == cudaSuccess ? absl::OkStatus() : CudaStatus(error, Context(op));
  }
  // Records that `op` was queued, for launchers that report errors in another way.
  void SetLast(const char* op) { last_ = op; }
  // Polls `query` until it returns success. DeadlineExceeded: it did not by `deadline`.
  absl::Status Await(const char* op, Deadline deadline, const std::function<cudaError_t()>& query) const {
    ASSIGN_OR_RETURN(const bool passed, PollUntil(deadline, Context(op), query));
    return passed ? absl::OkStatus()
                  : DeadlineExceeded("%s: %s has not passed in time, after %s was queued", device_name_, op, last_);
  }

 private:
  std::string Context(const char* op) const { return absl::StrFormat("%s: %s, after %s was queued", device_name_, op, last_); }

  std::string device_name_;
  CudaTimeline* timeline_ = nullptr;
  Stream stream_;
  const char* last_ = "nothing";  // the operation queued last
};

}  // namespace ferry::cuda
