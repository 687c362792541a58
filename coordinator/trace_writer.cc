#include "coordinator/trace_writer.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

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

absl::StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Create(const std::string& path) {
  std::ofstream file(path, std::ios::trunc);
  file << "[\n";
  if (!file.flush()) return FailedPrecondition("--trace %s cannot be written", path);
  return std::unique_ptr<TraceWriter>(new TraceWriter(std::move(file)));
}

void TraceWriter::Close() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(closed_, true)) return;
  // The format has no comma behind the last event, and no event is known to be it before now.
  file_ << R"({"name":"end","ph":"i","s":"g","pid":0,"tid":0,"ts":)" << absl::StrFormat("%.3f", Microseconds(absl::Now()))
        << "}\n]\n";
  file_.close();
}

void TraceWriter::AddStep(uint64_t epoch, uint64_t step, int64_t rows, absl::Time begin, absl::Time end) {
  const std::lock_guard lock(mutex_);
  NameLocked(kCoordinator, kStepsRow, "coordinator", "steps");
  const std::string name = absl::StrFormat("step of %d rows", rows);
  const uint64_t id = epoch << 40 | step;
  WriteLocked("b", name, kCoordinator, kStepsRow, begin, absl::ZeroDuration(), id,
              {{"epoch", static_cast<int64_t>(epoch)}, {"step", static_cast<int64_t>(step)}, {"rows", rows}});
  WriteLocked("e", name, kCoordinator, kStepsRow, end, absl::ZeroDuration(), id, {});
  if (!closed_) file_.flush();
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
    file_ << nlohmann::json{{"name", what}, {"ph", "M"}, {"pid", process}, {"tid", row}, {"args", {{"name", name}}}}.dump()
          << ",\n";
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
  file_ << event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << ",\n";
}

}  // namespace ferry
