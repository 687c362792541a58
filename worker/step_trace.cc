#include "worker/step_trace.h"

#include <algorithm>
#include <string_view>

namespace ferry {

void StepTrace::AddDevice(const std::vector<TimelineSpan>& spans) {
  if (!wanted_) return;
  for (const TimelineSpan& span : spans) {
    const bool copy = span.queue == TimelineSpan::Queue::kCopy;
    spans_.push_back({span.name, copy ? TraceSpan::Track::kCopy : TraceSpan::Track::kCompute, -1, span.begin, span.end});
  }
}

void CountTimeline(const std::vector<TimelineSpan>& spans, double seconds, v1::ExpertCounters* counters) {
  absl::Duration copies, waits, work;
  absl::Time counted = absl::InfinitePast();  // of the compute queue: an operation may be inside another
  for (const TimelineSpan& span : spans) {
    if (span.queue == TimelineSpan::Queue::kCopy) {
      copies += span.end - span.begin;
    } else if (std::string_view(span.name) == kWaitSpan) {
      waits += span.end - span.begin;
    } else {
      work += std::max(absl::ZeroDuration(), span.end - std::max(span.begin, counted));
      counted = std::max(counted, span.end);
    }
  }
  counters->set_copy_busy_seconds(absl::ToDoubleSeconds(copies));
  counters->set_copy_wait_seconds(absl::ToDoubleSeconds(waits));
  counters->set_device_seconds(absl::ToDoubleSeconds(work));
  counters->set_timed_seconds(seconds);
}

}  // namespace ferry
