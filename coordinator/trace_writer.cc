#include "coordinator/trace_writer.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/log.h"

namespace ferry {
namespace {

constexpr int kCoordinator = 0;  // worker i is process i + 1
constexpr int kStepsRow = 0, kEngineRow = 1;

const char* RowName(internal::v1::TraceSpan::Track track) {
  switch (track) {
    case internal::v1::TraceSpan::COMPUTE:
      return "device: compute";
    case internal::v1::TraceSpan::COPY:
      return "device: copies";
    default:
      return "thread";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Create(const std::string& path, OutputFileOptions options) {
  options.flag = "--trace";
  ASSIGN_OR_RETURN(std::unique_ptr<OutputFile> file, OutputFile::Create(path, std::move(options)));
  RETURN_IF_ERROR(file->Append("[\n"));
  return std::unique_ptr<TraceWriter>(new TraceWriter(std::move(file)));
}

absl::Status TraceWriter::Close() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(closed_, true)) return status_;
  // The format has no comma behind the last event, and no event is known to be it before now.
  absl::StrAppendFormat(&buffer_,
                        R"({"name":"end","ph":"i","s":"g","pid":0,"tid":0,"ts":%.3f})"
                        "\n]\n",
                        Microseconds(absl::Now()));
  FlushLocked();
  if (status_.ok()) status_ = file_->Commit();
  file_.reset();
  return status_;
}

void TraceWriter::FlushLocked() {
  if (status_.ok()) {
    status_ = file_->Append(buffer_);
    if (!status_.ok()) spdlog::error("the trace ends here, and no file will be kept: {}", std::string(status_.message()));
  }
  buffer_.clear();
}

void TraceWriter::AddStep(uint64_t epoch, uint64_t step, int64_t rows, absl::Time begin, absl::Time end) {
  const std::lock_guard lock(mutex_);
  NameLocked(kCoordinator, kStepsRow, "coordinator", "steps");
  const std::string name = absl::StrFormat("step of %d rows", rows);
  const uint64_t id = epoch << 40 | step;
  WriteLocked("b", name, kCoordinator, kStepsRow, begin, absl::ZeroDuration(), id,
              {{"epoch", static_cast<int64_t>(epoch)}, {"step", static_cast<int64_t>(step)}, {"rows", rows}});
  WriteLocked("e", name, kCoordinator, kStepsRow, end, absl::ZeroDuration(), id, {});
  if (!closed_) FlushLocked();
}

void TraceWriter::AddEngine(int64_t layer, int64_t experts, int64_t rows, absl::Time begin, absl::Time end) {
  const std::lock_guard lock(mutex_);
  NameLocked(kCoordinator, kEngineRow, "coordinator", "expert engine");
  WriteLocked("X", "experts", kCoordinator, kEngineRow, begin, end - begin, 0,
              {{"layer", layer}, {"experts", experts}, {"rows", rows}});
}

void TraceWriter::AddWorker(WorkerId worker, const google::protobuf::RepeatedPtrField<internal::v1::TraceSpan>& spans) {
  const std::lock_guard lock(mutex_);
  const int process = worker.value() + 1;
  for (const internal::v1::TraceSpan& span : spans) {
    NameLocked(process, span.track(), absl::StrFormat("worker %d", worker.value()), RowName(span.track()));
    WriteLocked("X", span.name(), process, span.track(), absl::FromUnixNanos(span.begin_unix_ns()),
                absl::Nanoseconds(span.duration_ns()), 0, span.layer() < 0 ? Arguments() : Arguments{{"layer", span.layer()}});
  }
}

void TraceWriter::NameLocked(int process, int row, const std::string& process_name, const std::string& row_name) {
  if (closed_ || !named_.emplace(process, row).second) return;
  for (const auto& [what, name] : {std::pair("process_name", process_name), std::pair("thread_name", row_name)}) {
    buffer_ += nlohmann::json{{"name", what}, {"ph", "M"}, {"pid", process}, {"tid", row}, {"args", {{"name", name}}}}.dump(
                   -1, ' ', false, nlohmann::json::error_handler_t::replace) +
               ",\n";
  }
}

void TraceWriter::WriteLocked(const char* phase, const std::string& name, int process, int row, absl::Time at,
                              absl::Duration duration, uint64_t id, const Arguments& arguments) {
  if (closed_) return;
  nlohmann::json event = {{"name", name}, {"ph", phase}, {"pid", process}, {"tid", row}, {"ts", Microseconds(at)}};
  if (*phase == 'X') {
    event["dur"] = absl::ToDoubleMicroseconds(duration);
  } else {
    event["id"] = id;
    event["cat"] = "step";
  }
  for (const auto& [key, value] : arguments) event["args"][key] = value;
  buffer_ += event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + ",\n";
}

}  // namespace ferry
