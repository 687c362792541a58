#include "kernels/cuda/logits_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/cuda/device_views.h"
#include "kernels/cuda/logits.h"

namespace ferry::cuda {
namespace {

// How many of a row's best logits the device finds. 0: none wanted, or more than it sorts, and the whole row is downloaded.
int32_t DeviceTop(const LogitsRequest& request, int64_t cols) {
  return request.top_n >= cols || request.top_n > kMaxTopLogits ? 0 : request.top_n;
}

void KeepBest(const std::vector<float>& values, int32_t top_n, LogitsResult* result) {
  std::vector<int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    const bool a_nan = std::isnan(values[a]), b_nan = std::isnan(values[b]);
    if (a_nan != b_nan) return b_nan;
    return a_nan || values[a] == values[b] ? a < b : values[a] > values[b];
  };
  std::partial_sort(ids.begin(), ids.begin() + top_n, ids.end(), better);
  ids.resize(top_n);
  for (const int32_t id : ids) result->logits.push_back(values[id]);
  result->ids = std::move(ids);
}

}  // namespace

absl::StatusOr<std::vector<LogitsResult>> LogitsReader::Read(Tensor logits, std::span<const LogitsRequest> requests) {
  std::vector<LogitsResult> results(requests.size());
  const int64_t rows = logits.rows, cols = logits.cols;
  int64_t max_top = 0;
  for (const LogitsRequest& request : requests) max_top = std::max<int64_t>(max_top, DeviceTop(request, cols));
  const int64_t per_row = static_cast<int64_t>(sizeof(RowSummary)) + max_top * static_cast<int64_t>(sizeof(RankedLogit));
  const int64_t search_per_row = SummarizeWorkspaceBytes(1, cols, max_top);
  const int64_t rows_at_once = std::clamp<int64_t>(kWorkspaceBytes / (per_row + search_per_row + 64), 1,
                                                   Staging::kBufferBytes / static_cast<int64_t>(sizeof(RowRequest)));
  for (int64_t first = 0; first < rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, rows - first);
    RETURN_IF_ERROR(Summarize(logits, requests, first, count, max_top, results));
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (requests[row].top_n == 0 || DeviceTop(requests[row], cols) != 0) continue;
    std::vector<float> values(cols);
    RETURN_IF_ERROR(transfers_.Download(std::as_writable_bytes(std::span(values)), logits.Rows(row, 1).data));
    if (requests[row].top_n >= cols) {
      results[row].logits = std::move(values);
    } else {
      KeepBest(values, requests[row].top_n, &results[row]);
    }
  }
  return results;
}

absl::Status LogitsReader::Summarize(Tensor logits, std::span<const LogitsRequest> requests, int64_t first, int64_t count,
                                     int64_t max_top, std::vector<LogitsResult>& results) {
  const int64_t cols = logits.cols;
  ASSIGN_OR_RETURN(std::byte * staged, transfers_.Stage(count * static_cast<int64_t>(sizeof(RowRequest))));
  auto* const staged_requests = reinterpret_cast<RowRequest*>(staged);
  for (int64_t i = 0; i < count; ++i) {
    const LogitsRequest& request = requests[first + i];
    staged_requests[i] = {static_cast<int32_t>(first + i), DeviceTop(request, cols), request.target};
  }
  const int64_t best_offset = AlignUp(count * static_cast<int64_t>(sizeof(RowSummary)), 16);
  const int64_t results_bytes = AlignUp(best_offset + count * max_top * static_cast<int64_t>(sizeof(RankedLogit)), 256);
  ASSIGN_OR_RETURN(std::byte * workspace, workspace_.Reserve(results_bytes + SummarizeWorkspaceBytes(count, cols, max_top)));
  SummarizeArgs args;
  args.logits = RowsOf(logits);
  args.requests = staged_requests;
  args.num_requests = count;
  args.max_top = max_top;
  args.summaries = reinterpret_cast<RowSummary*>(workspace);
  args.best = reinterpret_cast<RankedLogit*>(workspace + best_offset);
  args.workspace = workspace + results_bytes;
  {
    const CudaTimeline::Scope span = queue_.SpanOf("ReadLogits");
    RETURN_IF_ERROR(queue_.Queued("ReadLogits", LaunchSummarize(args, queue_.get())));
  }
  std::vector<std::byte> read(best_offset + count * max_top * sizeof(RankedLogit));
  RETURN_IF_ERROR(transfers_.Download(read, workspace));
  for (int64_t i = 0; i < count; ++i) {
    LogitsResult& result = results[first + i];
    RowSummary summary;
    std::memcpy(&summary, read.data() + i * sizeof(RowSummary), sizeof(summary));
    result.log_sum_exp = summary.log_sum_exp;
    result.target_logit = summary.target_logit;
    for (int64_t n = 0; n < DeviceTop(requests[first + i], cols); ++n) {
      RankedLogit ranked;
      std::memcpy(&ranked, read.data() + best_offset + (i * max_top + n) * sizeof(RankedLogit), sizeof(ranked));
      result.ids.push_back(ranked.id);
      result.logits.push_back(ranked.logit);
    }
  }
  return absl::OkStatus();
}

}  // namespace ferry::cuda
