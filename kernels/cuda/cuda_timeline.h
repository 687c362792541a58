#pragma once

// When operations and copies ran, by the clock of the device: an event before and one after each, read when both have passed.

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/status.h"
#include "kernels/ops.h"

namespace ferry::cuda {

// One thread.
class CudaTimeline {
 public:
  CudaTimeline() = default;
  CudaTimeline(const CudaTimeline&) = delete;
  ~CudaTimeline();

  // Starts recording. Waits until `stream` has done its queued work, since only an event that host and device both see ties their
  // clocks together. DeadlineExceeded: it took longer than until `deadline`.
  absl::Status Start(cudaStream_t stream, Deadline deadline);
  // Ends the recording and returns the finished spans; the others stay for the next call. Returns an error of recording, if any.
  absl::StatusOr<std::vector<TimelineSpan>> Take();

  // A span of all work queued on `stream` from construction to destruction.
  class Scope {
   public:
    Scope(CudaTimeline& timeline, const char* name, TimelineSpan::Queue queue, cudaStream_t stream);
    Scope(const Scope&) = delete;
    ~Scope();

   private:
    CudaTimeline* const timeline_;  // null: not recording
    const cudaStream_t stream_;
    const char* const name_;
    const TimelineSpan::Queue queue_;
    cudaEvent_t begin_ = nullptr;
  };

 private:
  // An event whose time both clocks know. Times are counted from the newest, as the device's differences are 32-bit floats of
  // milliseconds: a microsecond is lost after 16 s.
  struct Anchor {
    CudaTimeline* timeline;
    cudaEvent_t event;
    absl::Time time;
    ~Anchor() { timeline->free_.push_back(event); }
  };
  struct Pending {
    const char* name;
    TimelineSpan::Queue queue;
    cudaEvent_t begin, end;
    std::shared_ptr<Anchor> anchor;
  };

  cudaEvent_t Record(cudaStream_t stream);  // null, and status_ says why
  absl::StatusOr<absl::Time> TimeOf(const Anchor& anchor, cudaEvent_t event) const;

  bool recording_ = false;
  absl::Status status_;
  std::vector<cudaEvent_t> free_;
  std::shared_ptr<Anchor> anchor_;
  std::vector<Pending> pending_;
};

}  // namespace ferry::cuda
