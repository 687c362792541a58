#include "worker/host_share.h"

#include "common/deadline.h"
#include "common/log.h"

namespace ferry {

absl::StatusOr<std::unique_ptr<HostShare>> HostShare::Create(Ops* ops, ExpertLink* link, const ArenaLayout* arena,
                                                             int64_t n_embd) {
  std::unique_ptr<HostShare> share(new HostShare(ops, link, arena));
  ASSIGN_OR_RETURN(share->rows_, HostRows::Create(ops, n_embd));
  return share;
}

absl::Status HostShare::BeginLayer(Tensor in, bool likely) {
  in_ = in;
  chunks_.clear();
  started_ = finished_ = 0;
  return rows_->Begin(in, likely);
}

absl::Status HostShare::Start(const StepContext& context, int64_t layer, std::span<const int32_t> experts,
                              const HostGroups& groups) {
  chunks_ = CutIntoChunks(experts, groups, link_.max_rows(), link_.max_entries());
  if (chunks_.empty()) return absl::OkStatus();
  if (chunks_.size() > 1) RETURN_IF_ERROR(FetchRows(context, layer));
  return StartChunk(context, layer);
}

// All at once, before the device has its share to compute: a later download would wait for that.
absl::Status HostShare::FetchRows(const StepContext& context, int64_t layer) {
  const StepTrace::Scope span(*context.trace, "rows from the device", layer);
  std::vector<uint8_t> needed(in_.rows, 0);
  for (const HostChunk& chunk : chunks_) {
    for (const int32_t row : chunk.rows) needed[row] = 1;
  }
  std::vector<int32_t> rows;
  for (int32_t row = 0; row < in_.rows; ++row) {
    if (needed[row] != 0) rows.push_back(row);
  }
  return rows_->Fetch(in_, rows);
}

absl::Status HostShare::StartChunk(const StepContext& context, int64_t layer) {
  const StepTrace::Scope span(*context.trace, "rows to the host", layer);
  const HostChunk& chunk = chunks_[started_];
  const std::span<float> rows = link_.HostRows(static_cast<int64_t>(chunk.rows.size()));
  if (chunks_.size() == 1) {
    RETURN_IF_ERROR(rows_->Download(in_, chunk.rows, rows));
  } else {
    rows_->Read(chunk.rows, rows);
  }
  RETURN_IF_ERROR(link_.StartCompute({.step = context.step,
                                      .layer = static_cast<int32_t>(layer),
                                      .num_rows = static_cast<int32_t>(chunk.rows.size()),
                                      .uses = chunk.uses,
                                      .entry_rows = chunk.entry_rows}));
  ++started_;
  context.counters->set_host_bytes_read(context.counters->host_bytes_read() + chunk.uses.size() * arena_.layer(layer).bytes);
  return absl::OkStatus();
}

absl::Status HostShare::FinishChunk(const StepContext& context, int64_t layer, Tensor contributions) {
  const StepTrace::Scope span(*context.trace, "host's share", layer);
  const Stopwatch waiting;
  const std::vector<int32_t>& outs = chunks_[finished_].outs;
  const bool last = ++finished_ == chunks_.size();
  const absl::StatusOr<std::span<const float>> results = link_.FinishCompute(context.deadline);
  RETURN_IF_ERROR(Annotate(results.status(), absl::StrFormat("experts of layer %d on the host", layer)));
  context.counters->set_host_wait_seconds(context.counters->host_wait_seconds() + waiting.Seconds());
  // The device may read the last chunk's results in place. The host overwrites them at the next request, which the next layer
  // makes only after it has waited for its routing, and so for this.
  return last ? ops_.ScatterContributionsAsync(*results, outs, contributions)
              : ops_.ScatterContributions(*results, outs, contributions);
}

absl::Status HostShare::Continue(const StepContext& context, int64_t layer, Tensor contributions) {
  if (CanStart()) RETURN_IF_ERROR(StartChunk(context, layer));
  if (started_ > finished_ && link_.Answered()) RETURN_IF_ERROR(FinishChunk(context, layer, contributions));
  return absl::OkStatus();
}

absl::Status HostShare::Finish(const StepContext& context, int64_t layer, Tensor contributions) {
  while (finished_ < chunks_.size()) {
    while (CanStart()) RETURN_IF_ERROR(StartChunk(context, layer));
    RETURN_IF_ERROR(FinishChunk(context, layer, contributions));
  }
  return absl::OkStatus();
}

void HostShare::Recover() {
  // A mailbox takes the next request only after this one's answer.
  const Deadline patience = Deadline::In(absl::Seconds(2));
  for (; finished_ < started_; ++finished_) {
    const auto late = link_.FinishCompute(patience);
    if (!late.ok()) spdlog::warn("the host's share of a failed step: {}", late.status().ToString());
  }
}

}  // namespace ferry
