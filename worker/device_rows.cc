#include "worker/device_rows.h"

#include <algorithm>
#include <deque>
#include <span>
#include <utility>

namespace ferry {
namespace {

constexpr absl::Duration kLook = absl::Microseconds(100);  // at the chunks that the device has read, while none comes

}  // namespace

absl::Status SendDeviceRows(Ops& ops, ActivationSink& sink, uint64_t step, Tensor rows, Deadline deadline) {
  ASSIGN_OR_RETURN(const bool sent, sink.SendFromDevice(step, 0, static_cast<const float*>(rows.data), rows.rows, deadline));
  if (sent) return absl::OkStatus();
  for (int64_t first = 0; first < rows.rows;) {
    ASSIGN_OR_RETURN(const std::span<float> part, sink.Reserve(rows.rows - first, deadline));
    const int64_t num_rows = static_cast<int64_t>(part.size()) / rows.cols;
    RETURN_IF_ERROR(ops.DownloadAsync(std::as_writable_bytes(part), rows.Rows(first, num_rows).data));
    ASSIGN_OR_RETURN(const Event downloaded, ops.MarkCompute());
    RETURN_IF_ERROR(ops.Wait(downloaded, deadline));
    RETURN_IF_ERROR(sink.Send(step, first, deadline));
    first += num_rows;
  }
  return absl::OkStatus();
}

int64_t NumRowsOf(const ActivationChunk& chunk, int64_t n_embd) {
  return chunk.announced_rows > 0 ? chunk.announced_rows : static_cast<int64_t>(chunk.values.size()) / n_embd;
}

absl::StatusOr<Event> TakeDeviceRows(Ops& ops, ActivationSource& source, const ActivationChunk& chunk, Tensor rows,
                                     Deadline deadline) {
  if (chunk.announced_rows > 0) {
    RETURN_IF_ERROR(source.Receive(static_cast<float*>(rows.data), rows.rows, deadline));
    return Event();
  }
  RETURN_IF_ERROR(ops.UploadAsync(rows.data, std::as_bytes(chunk.values)));
  return ops.MarkCompute();
}

absl::Status ReceiveDeviceRows(Ops& ops, ActivationSource& source, uint64_t step, Tensor rows, Deadline deadline) {
  std::deque<std::pair<ActivationChunk, Event>> uploading;
  for (int64_t here = 0; here < rows.rows;) {
    while (!uploading.empty() && ops.Passed(uploading.front().second)) uploading.pop_front();
    const Deadline until = uploading.empty() ? deadline : std::min(deadline, Deadline::In(kLook));
    absl::StatusOr<ActivationChunk> chunk = source.Next(step, here, until);
    if (until != deadline && absl::IsDeadlineExceeded(chunk.status())) continue;
    RETURN_IF_ERROR(chunk.status());
    const int64_t num_rows = NumRowsOf(*chunk, rows.cols);
    if (num_rows > rows.rows - here) {
      return InvalidArgument("%d hidden states came from row %d on, want at most %d", num_rows, here, rows.rows - here);
    }
    ASSIGN_OR_RETURN(Event taken, TakeDeviceRows(ops, source, *chunk, rows.Rows(here, num_rows), deadline));
    uploading.emplace_back(*std::move(chunk), std::move(taken));
    here += num_rows;
  }
  for (; !uploading.empty(); uploading.pop_front()) RETURN_IF_ERROR(ops.Wait(uploading.front().second, deadline));
  return absl::OkStatus();
}

}  // namespace ferry
