#include "kernels/cuda/cuda_timeline.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "kernels/cuda/copy_engine.h"
#include "kernels/cuda/cuda_handles.h"

namespace ferry::cuda {

CudaTimeline::~CudaTimeline() {
  for (const Pending& pending : pending_) {
    free_.push_back(pending.begin);
    free_.push_back(pending.end);
  }
  pending_.clear();
  anchor_.reset();
  for (const cudaEvent_t event : free_) cudaEventDestroy(event);
}

cudaEvent_t CudaTimeline::Record(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  if (!free_.empty()) {
    event = free_.back();
    free_.pop_back();
  } else {
    status_.Update(CudaStatus(cudaEventCreate(&event), "making an event for the timeline"));
  }
  if (event != nullptr) status_.Update(CudaStatus(cudaEventRecord(event, stream), "recording an event of the timeline"));
  return event;
}

absl::Status CudaTimeline::Start(cudaStream_t stream, Deadline deadline) {
  const cudaEvent_t event = Record(stream);
  RETURN_IF_ERROR(std::exchange(status_, absl::OkStatus()));
  ASSIGN_OR_RETURN(const bool passed, PollUntil(deadline, "StartTimeline", [&] { return cudaEventQuery(event); }));
  if (!passed) {
    free_.push_back(event);
    return DeadlineExceeded("the compute queue did not become empty in time");
  }
  anchor_ = std::make_shared<Anchor>(this, event, absl::Now());
  recording_ = true;
  return absl::OkStatus();
}

absl::StatusOr<absl::Time> CudaTimeline::TimeOf(const Anchor& anchor, cudaEvent_t event) const {
  float milliseconds = 0;
  RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, anchor.event, event), "reading the timeline"));
  return anchor.time + absl::Milliseconds(static_cast<double>(milliseconds));
}

absl::StatusOr<std::vector<TimelineSpan>> CudaTimeline::Take() {
  recording_ = false;
  std::vector<TimelineSpan> spans;
  std::vector<Pending> running;
  for (Pending& pending : std::exchange(pending_, {})) {
    const cudaError_t error = cudaEventQuery(pending.end);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();
      running.push_back(std::move(pending));
      continue;
    }
    status_.Update(CudaStatus(error, "reading the timeline"));
    const absl::StatusOr<absl::Time> begin = TimeOf(*pending.anchor, pending.begin);
    const absl::StatusOr<absl::Time> end = TimeOf(*pending.anchor, pending.end);
    if (begin.ok() && end.ok()) spans.push_back({pending.name, pending.queue, *begin, *end});
    status_.Update(begin.status());
    status_.Update(end.status());
    free_.push_back(pending.begin);
    free_.push_back(pending.end);
  }
  pending_ = std::move(running);
  RETURN_IF_ERROR(std::exchange(status_, absl::OkStatus()));
  return spans;
}

CudaTimeline::Scope::Scope(CudaTimeline& timeline, const char* name, TimelineSpan::Queue queue, cudaStream_t stream)
    : timeline_(timeline.recording_ ? &timeline : nullptr), stream_(stream), name_(name), queue_(queue) {
  if (timeline_ != nullptr) begin_ = timeline_->Record(stream_);
}

CudaTimeline::Scope::~Scope() {
  if (begin_ == nullptr) return;
  const cudaEvent_t end = timeline_->Record(stream_);
  if (end == nullptr) {
    timeline_->free_.push_back(begin_);
  } else {
    timeline_->pending_.push_back({name_, queue_, begin_, end, timeline_->anchor_});
  }
}

}  // namespace ferry::cuda
