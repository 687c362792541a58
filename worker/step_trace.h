#pragma once

// The trace of one step in a worker: spans of its compute thread's work and of its device's queues. The thread's spans are
// recorded only for a wanted trace; the device's spans also for the counters of large steps.
//
// One thread.

#include <cstdint>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/ops.h"

namespace ferry {

struct TraceSpan {
  enum class Track : uint8_t { kHost, kCompute, kCopy };  // the worker's thread, and its device's two queues
  const char* name = "";
  Track track = Track::kHost;
  int64_t layer = -1;  // -1: no layer
  absl::Time begin, end;
};

class StepTrace {
 public:
  explicit StepTrace(bool wanted) : wanted_(wanted) {}
  bool wanted() const { return wanted_; }

  // Records a span of this thread from construction to destruction.
  class Scope {
   public:
    Scope(StepTrace& trace, const char* name, int64_t layer)
        : trace_(trace), name_(name), layer_(layer), begin_(trace.wanted_ ? absl::Now() : absl::Time()) {}
    Scope(const Scope&) = delete;
    ~Scope() {
      if (!trace_.wanted_) return;
      trace_.spans_.push_back({name_, TraceSpan::Track::kHost, layer_, begin_, absl::Now()});
    }

   private:
    StepTrace& trace_;
    const char* const name_;
    const int64_t layer_;
    const absl::Time begin_;
  };

  void AddDevice(const std::vector<TimelineSpan>& spans);
  std::vector<TraceSpan> Take() { return std::move(spans_); }

 private:
  const bool wanted_;
  std::vector<TraceSpan> spans_;
};

// Replaces the host's estimates in `counters` with the copy and compute times of a step's timeline. `seconds`: the step's length.
void CountTimeline(const std::vector<TimelineSpan>& spans, double seconds, v1::ExpertCounters* counters);

}  // namespace ferry
