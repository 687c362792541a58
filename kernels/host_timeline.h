#pragma once

// The timeline of a host backend: spans by the wall clock, left by the computing and the copying thread. Thread-safe.

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/ops.h"

namespace ferry {

class HostTimeline {
 public:
  void Start() { recording_ = true; }
  std::vector<TimelineSpan> Take() {
    recording_ = false;
    const std::lock_guard lock(mutex_);
    return std::exchange(spans_, {});
  }

  // The span lasts from construction to destruction.
  class Scope {
   public:
    Scope(HostTimeline& timeline, const char* name, TimelineSpan::Queue queue = TimelineSpan::Queue::kCompute)
        : timeline_(timeline.recording_ ? &timeline : nullptr), span_{.name = name, .queue = queue} {
      if (timeline_ != nullptr) span_.begin = absl::Now();
    }
    Scope(const Scope&) = delete;
    ~Scope() {
      if (timeline_ == nullptr) return;
      span_.end = absl::Now();
      const std::lock_guard lock(timeline_->mutex_);
      timeline_->spans_.push_back(span_);
    }

   private:
    HostTimeline* const timeline_;  // null: nothing is recorded
    TimelineSpan span_;
  };

 private:
  std::atomic<bool> recording_{false};
  std::mutex mutex_;
  std::vector<TimelineSpan> spans_;  // guarded by mutex_
};

}  // namespace ferry
