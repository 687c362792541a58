#pragma once

// The host's share of a layer: the experts that the coordinator computes while this worker's device computes the others. The
// share is cut into as many requests as the link needs; the next one lies there when the host ends one, as far as the link
// allows.
//
//   BeginLayer -> Start -> (the device's share, and Continue in its pauses) -> Finish
//
// One thread: the compute thread.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/model/expert_layout.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/expert_link.h"
#include "worker/host_chunks.h"
#include "worker/host_rows.h"
#include "worker/step_context.h"

namespace ferry {

class HostShare {
 public:
  // All outlive this. ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<HostShare>> Create(Ops* ops, ExpertLink* link, const ArenaLayout* arena, int64_t n_embd);
  // Device memory that Create allocates.
  static int64_t BytesOf(const Ops& ops, int64_t n_embd) { return HostRows::BytesOf(ops, n_embd); }

  // Begins a layer with input `in` (act [rows, n_embd]), without a share. If a share is `likely`, the rows of a small step are
  // downloaded with the caller's next Ops::Download.
  absl::Status BeginLayer(Tensor in, bool likely);
  // Sends the rows of `experts` (ids increasing) to the host, which begins to compute. Errors of the link.
  absl::Status Start(const StepContext& context, int64_t layer, std::span<const int32_t> experts, const HostGroups& groups);
  // Scatters results that have come into `contributions`, and sends the next request, without a wait for the host. It may wait
  // for the device, which reads results from a few buffers. Without a share it does nothing. Errors of the link.
  absl::Status Continue(const StepContext& context, int64_t layer, Tensor contributions);
  // The same for the whole share, with waits for the host.
  absl::Status Finish(const StepContext& context, int64_t layer, Tensor contributions);
  // After a failed step: waits for running requests, for at most two seconds.
  void Recover();

 private:
  HostShare(Ops* ops, ExpertLink* link, const ArenaLayout* arena) : ops_(*ops), link_(*link), arena_(*arena) {}
  absl::Status FetchRows(const StepContext& context, int64_t layer);
  bool CanStart() const { return started_ < chunks_.size() && static_cast<int>(started_ - finished_) < link_.max_running(); }
  absl::Status StartChunk(const StepContext& context, int64_t layer);
  absl::Status FinishChunk(const StepContext& context, int64_t layer, Tensor contributions);

  Ops& ops_;
  ExpertLink& link_;
  const ArenaLayout& arena_;
  std::unique_ptr<HostRows> rows_;
  Tensor in_;  // of the layer
  std::vector<HostChunk> chunks_;
  size_t started_ = 0, finished_ = 0;  // of chunks_; the host computes those between
};

}  // namespace ferry
