#pragma once

// The host's share of a layer: the experts that the coordinator computes while this worker's device computes the others. The link
// takes one request at a time; the share is cut into as many as it needs.
//
//   BeginLayer -> Start -> (the device's share) -> Finish
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
  // Waits for the host, sends further requests if the share has more, and scatters the results into `contributions`. Without a
  // share it does nothing. Errors of the link.
  absl::Status Finish(const StepContext& context, int64_t layer, Tensor contributions);
  // After a failed step: waits for a running request, for at most two seconds.
  void Recover();

 private:
  HostShare(Ops* ops, ExpertLink* link, const ArenaLayout* arena) : ops_(*ops), link_(*link), arena_(*arena) {}
  absl::Status StartChunk(const StepContext& context, int64_t layer);

  Ops& ops_;
  ExpertLink& link_;
  const ArenaLayout& arena_;
  std::unique_ptr<HostRows> rows_;
  Tensor in_;  // of the layer
  std::vector<HostChunk> chunks_;
  size_t next_chunk_ = 0;  // the first one not finished
  bool running_ = false;   // the host computes chunks_[next_chunk_]
};

}  // namespace ferry
