#pragma once

// The timeline of a cluster as a Chrome trace (JSON array of events), which ui.perfetto.dev and chrome://tracing open: the
// coordinator's steps and expert engine, every worker's thread and its device's two queues. Format:
// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format).
//
// Thread-safe. The file is one line an event, and viewers accept it cut short, as a killed process leaves it.

#include <cstdint>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"

namespace ferry {

class TraceWriter {
 public:
  // FailedPrecondition: the file cannot be written.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Create(const std::string& path);
  ~TraceWriter() { Close(); }

  // Completes the file; drops spans added later.
  void Close();

  // Steps overlap when several are in flight.
  void AddStep(uint64_t epoch, uint64_t step, int64_t rows, absl::Time begin, absl::Time end);
  void AddEngine(int64_t layer, int64_t experts, int64_t rows, absl::Time begin, absl::Time end);
  // Spans of an answer that CheckStepResponse let pass.
  void AddWorker(WorkerId worker, const google::protobuf::RepeatedPtrField<internal::v1::TraceSpan>& spans);

 private:
  explicit TraceWriter(std::ofstream file) : file_(std::move(file)) {}

  using Arguments = std::vector<std::pair<const char*, int64_t>>;
  // phase: X, a span of its row; b and e, the ends of one that may overlap others, paired by id.
  void WriteLocked(const char* phase, const std::string& name, int process, int row, absl::Time at, absl::Duration duration,
                   uint64_t id, const Arguments& arguments);
  void NameLocked(int process, int row, const std::string& process_name, const std::string& row_name);
  double Microseconds(absl::Time time) const { return absl::ToDoubleMicroseconds(time - origin_); }

  const absl::Time origin_ = absl::Now();
  std::mutex mutex_;  // guards what follows
  std::ofstream file_;
  std::set<std::pair<int, int>> named_;  // process, row
  bool closed_ = false;
};

}  // namespace ferry
