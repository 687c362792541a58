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
  next_chunk_ = 0;
  return rows_->Begin(in, likely);
}

absl::Status HostShare::Start(const StepContext& context, int64_t layer, std::span<const int32_t> experts,
                              const HostGroups& groups) {
  chunks_ = CutIntoChunks(experts, groups, link_.max_rows(), link_.max_entries());
  return chunks_.empty() ? absl::OkStatus() : StartChunk(context, layer);
}

absl::Status HostShare::StartChunk(const StepContext& context, int64_t layer) {
  const StepTrace::Scope span(*context.trace, "rows to the host", layer);
  const HostChunk& chunk = chunks_[next_chunk_];
  RETURN_IF_ERROR(rows_->Read(in_, chunk.rows, link_.HostRows(static_cast<int64_t>(chunk.rows.size()))));
  RETURN_IF_ERROR(link_.StartCompute({.step = context.step,
                                      .layer = static_cast<int32_t>(layer),
                                      .num_rows = static_cast<int32_t>(chunk.rows.size()),
                                      .uses = chunk.uses,
                                      .entry_rows = chunk.entry_rows}));
  running_ = true;
  context.counters->set_host_bytes_read(context.counters->host_bytes_read() + chunk.uses.size() * arena_.layer(layer).bytes);
  return absl::OkStatus();
}

absl::Status HostShare::Finish(const StepContext& context, int64_t layer, Tensor contributions) {
  for (; next_chunk_ < chunks_.size(); ++next_chunk_) {
    if (!running_) RETURN_IF_ERROR(StartChunk(context, layer));
    const StepTrace::Scope span(*context.trace, "host's share", layer);
    const Stopwatch waiting;
    const absl::StatusOr<std::span<const float>> results = link_.FinishCompute(context.deadline);
    running_ = false;
    RETURN_IF_ERROR(Annotate(results.status(), absl::StrFormat("experts of layer %d on the host", layer)));
    context.counters->set_host_wait_seconds(context.counters->host_wait_seconds() + waiting.Seconds());
    // The device may read the last chunk's results in place. The host overwrites them at the next request, which the next layer
    // makes only after it has waited for its routing, and so for this.
    const bool last = next_chunk_ + 1 == chunks_.size();
    const std::vector<int32_t>& outs = chunks_[next_chunk_].outs;
    RETURN_IF_ERROR(last ? ops_.ScatterContributionsAsync(*results, outs, contributions)
                         : ops_.ScatterContributions(*results, outs, contributions));
  }
  return absl::OkStatus();
}

void HostShare::Recover() {
  if (!running_) return;
  // The mailbox takes the next request only after this one's answer.
  const auto late = link_.FinishCompute(Deadline::In(absl::Seconds(2)));
  if (!late.ok()) spdlog::warn("the host's share of a failed step: {}", late.status().ToString());
  running_ = false;
}

}  // namespace ferry
