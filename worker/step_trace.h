#pragma once

// What a worker did in one step, and when: pieces of its own thread's work, and the spans of its device's queues. The thread's
// pieces are recorded only when somebody wants the trace; the device's also for the counters of large steps.
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
  enum class Track : uint8_t { kHost, kCompute, kCopy };  // the worker's thread, its device's two queues
  const char* name = "";
  Track track = Track::kHost;
  int64_t layer = -1;  // -1: of none
  absl::Time begin, end;
};

class StepTrace {
 public:
  explicit StepTrace(bool wanted) : wanted_(wanted) {}
  bool wanted() const { return wanted_; }

  // A piece of this thread's work, for as long as it lives.
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

// What a step's timeline says of its copies and of its compute queue, in place of what the host could see of them.
// seconds: of the step.
void CountTimeline(const std::vector<TimelineSpan>& spans, double seconds, v1::ExpertCounters* counters);

}  // namespace ferry
