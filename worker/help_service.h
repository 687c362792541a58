#pragma once

// Computes shares of other workers' layers on this device while its own stage has nothing to do, with slots of its own: what the
// stage keeps in its slots stays there.
//
// One thread: the compute thread.

#include <cstdint>
#include <memory>
#include <vector>

#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/expert_cache.h"
#include "worker/expert_link.h"
#include "worker/help_boards.h"
#include "worker/step_trace.h"

namespace ferry {

class HelpService {
 public:
  static constexpr int64_t kMinSlots = 3;  // one computed, one arriving, one waiting

  // All outlive this. `max_entries`: rows of a share's contributions. ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<HelpService>> Create(Ops* ops, ExpertLink* link, const ModelConfig* model,
                                                             const ArenaLayout* arena, int64_t num_slots, int64_t max_entries);

  // Device memory that the stage lends for a share: act [max_rows, n_embd] and contribution_dtype [max_entries, n_embd].
  struct Buffers {
    Tensor in, contributions;
  };
  // Settles `boards`, computes every share that waits for this worker on them, and answers it. A share that fails is logged, and
  // its owner computes it.
  void Serve(HelpBoards& boards, const Buffers& buffers, StepTrace* trace);
  // Empties the slots. DeadlineExceeded: a copy did not end.
  absl::Status Forget(Deadline deadline) { return cache_->Forget(deadline); }

  uint64_t num_computed() const { return num_computed_; }  // experts, for others, so far

 private:
  HelpService(Ops* ops, const ModelConfig* model, const ArenaLayout* arena) : ops_(*ops), model_(*model), arena_(*arena) {}
  absl::Status Compute(const HelpRequest& request, const HelpBoards::Memory& memory, const Buffers& buffers);
  absl::StatusOr<ExpertGroups> UploadGroups(const ExpertRequest& share);
  absl::Status ComputeTogether(const HelpRequest& request, std::span<const int32_t> experts, const ExpertGroups& groups,
                               Tensor in, Tensor contributions, std::span<std::byte> results);

  Ops& ops_;
  const ModelConfig& model_;
  const ArenaLayout& arena_;
  std::unique_ptr<ExpertCache> cache_;
  DeviceBuffer memory_;  // i32, of a share's groups: offsets, entry rows, entry outs
  int64_t max_entries_ = 0;
  uint64_t num_shares_ = 0, num_computed_ = 0;
  // Of the share in progress, by expert.
  std::vector<int32_t> tokens_;
  std::vector<int32_t> use_of_;   // its number among the share's uses
  std::vector<int32_t> offsets_;  // by use: its first entry
};

}  // namespace ferry
