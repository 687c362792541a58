#pragma once

// What one rendering may still take.

#include <cstddef>
#include <cstdint>

#include "common/deadline.h"
#include "common/status.h"
#include "gateway/template/template.h"

namespace ferry::jinja {

// One rendering's; used by its thread.
class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits), deadline_(Deadline::In(limits.time)) {}

  // Counts `steps`. ResourceExhausted or DeadlineExceeded.
  absl::Status Step(int64_t steps = 1) {
    steps_ += steps;
    if (steps_ > limits_.steps) return ResourceExhausted("the template takes more than %d steps", limits_.steps);
    if (steps_ < next_clock_) return absl::OkStatus();
    next_clock_ = steps_ + 1024;
    if (!deadline_.Passed()) return absl::OkStatus();
    return DeadlineExceeded("the template takes more than %s", absl::FormatDuration(limits_.time));
  }

  // Counts the steps that handling so many bytes of text is worth.
  absl::Status StepBytes(size_t bytes) { return Step(static_cast<int64_t>(bytes / 512)); }

  // Whether a string may have `bytes`.
  absl::Status CheckString(size_t bytes) const {
    if (bytes <= limits_.output_bytes) return absl::OkStatus();
    return ResourceExhausted("the template makes a string of more than %d bytes", limits_.output_bytes);
  }

  // Memory that is taken, and given back. Give always follows a Take that succeeded.
  absl::Status Take(size_t bytes) {
    if (bytes > limits_.memory_bytes - taken_) {
      return ResourceExhausted("the template's values need more than %d bytes", limits_.memory_bytes);
    }
    taken_ += bytes;
    return absl::OkStatus();
  }
  void Give(size_t bytes) { taken_ -= bytes; }

  const Limits& limits() const { return limits_; }

 private:
  const Limits limits_;
  const Deadline deadline_;
  int64_t steps_ = 0;
  int64_t next_clock_ = 1024;
  size_t taken_ = 0;
};

// Counts a level of nesting from construction to destruction.
class DepthGuard {
 public:
  explicit DepthGuard(int* depth) : depth_(*depth) { ++depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;
  ~DepthGuard() { --depth_; }

 private:
  int& depth_;
};

}  // namespace ferry::jinja
