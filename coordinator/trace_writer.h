#pragma once

// The timeline of a cluster as a Chrome trace (JSON array of events), which ui.perfetto.dev and chrome://tracing open: the
// coordinator's steps and expert engine, every worker's thread and its device's two queues. Format:
// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format).
//
// Thread-safe. The file is one line an event. It has a temporary name until Close completes it; viewers accept it cut short, as a
// killed process leaves it under that name.

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/output_file.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"

namespace ferry {

class TraceWriter {
 public:
  // FailedPrecondition: the file cannot be written, or may not be (CheckOutput).
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Create(const std::string& path, OutputFileOptions options = {});
  ~TraceWriter() { Close().IgnoreError(); }

  // Completes the file and renames it; drops spans added later. Error: the file could not be written, and none has the name.
  // Later calls return the same.
  absl::Status Close();

  // Steps overlap when several are in flight.
  void AddStep(uint64_t epoch, uint64_t step, int64_t rows, absl::Time begin, absl::Time end);
  void AddEngine(int64_t layer, int64_t experts, int64_t rows, absl::Time begin, absl::Time end);
  // Spans of an answer that CheckStepResponse let pass.
  void AddWorker(WorkerId worker, const google::protobuf::RepeatedPtrField<internal::v1::TraceSpan>& spans);

 private:
  explicit TraceWriter(std::unique_ptr<OutputFile> file) : file_(std::move(file)) {}

  using Arguments = std::vector<std::pair<const char*, int64_t>>;
  // phase: X, a span of its row; b and e, the ends of one that may overlap others, paired by id.
  void WriteLocked(const char* phase, const std::string& name, int process, int row, absl::Time at, absl::Duration duration,
                   uint64_t id, const Arguments& arguments);
  // Hands the buffered spans to the file; the first failure is logged and ends the writing.
  void FlushLocked();
  void NameLocked(int process, int row, const std::string& process_name, const std::string& row_name);
  double Microseconds(absl::Time time) const { return absl::ToDoubleMicroseconds(time - origin_); }

  const absl::Time origin_ = absl::Now();
  std::mutex mutex_;  // guards what follows
  std::unique_ptr<OutputFile> file_;
  std::string buffer_;                   // lines that the file does not have yet
  absl::Status status_;                  // of the file
  std::set<std::pair<int, int>> named_;  // process, row
  bool closed_ = false;
};

}  // namespace ferry
