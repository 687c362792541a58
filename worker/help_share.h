#pragma once

// The shares of a layer that other workers of the host compute for this one (common/shm/help_board.h).
//
//   Start -> (this device's share) -> Finish
//
// A helper that has not begun by Finish loses its share, and one that fails or is late too; the caller computes what is left.
// After a late answer nobody is asked any more in this epoch, since that helper may still write to the board.
//
// One thread: the compute thread.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "common/deadline.h"
#include "common/shm/expert_mailbox.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/help_boards.h"
#include "worker/host_chunks.h"
#include "worker/step_context.h"

namespace ferry {

class HelpShare {
 public:
  // A helper's device reaches this one fast from this rate on; the planner reckons with it (PlaceOf). Slower ways are no better
  // than that through the host's memory, which leaves the devices' own ways to their copies.
  static constexpr double kNearBytesPerSecond = 80e9;

  // `ops` outlives this.
  explicit HelpShare(Ops* ops) : ops_(*ops) {}

  // Between steps: the boards of the epoch that begins; null: nobody helps.
  void SetBoards(std::shared_ptr<HelpBoards> boards);
  // The workers that have nothing else to do than help with a layer of so many rows, as of ExpertRequest::helpers.
  uint32_t Available(int64_t rows) const;
  // How many there will probably be `time` from now.
  int NumAvailableWithin(absl::Duration time, int64_t rows) const;

  // Sends the layer's rows, `in` [rows, n_embd], and each helper its share; `shares`: by the helper's id, experts with increasing
  // ids. The device's errors, or those of HelpBoard::Post.
  absl::Status Start(const StepContext& context, int64_t layer, Tensor in,
                     const std::map<int64_t, std::vector<ActivatedExpert>>& shares, const HostGroups& groups);
  // Waits for the helpers and scatters their results into `contributions`, which are written once a MarkCompute queued after this
  // call has passed. Returns the experts that nobody computed, ids increasing.
  absl::StatusOr<std::vector<ActivatedExpert>> Finish(const StepContext& context, int64_t layer, Tensor contributions);
  // After a failed step: withdraws what was posted, and asks nobody any more if a helper is at it.
  void Recover();

 private:
  struct Running {
    int64_t helper = 0;
    std::span<std::byte> contributions;  // of all helpers that use the same memory
    int64_t first_entry = 0;
    std::vector<ActivatedExpert> uses;
    std::vector<int32_t> outs;
  };
  // Whether rows and contributions of a share lie in this device's memory, which that helper reaches fast.
  bool OnDevice(int64_t helper) const {
    return boards_->own().reach(helper) >= kNearBytesPerSecond && boards_->OnDevice(boards_->self()).has_value();
  }
  HelpBoards::Memory MemoryOf(int64_t helper) const {
    return OnDevice(helper) ? *boards_->OnDevice(boards_->self()) : boards_->OnBoard(boards_->self());
  }
  bool Takes(int64_t helper, int64_t rows) const {
    const HelpBoardShape& shape = boards_->own().shape();
    return helper != boards_->self() && rows <= (OnDevice(helper) ? shape.max_rows : shape.board_rows());
  }
  bool WaitFor(const Running& share, Deadline deadline);

  Ops& ops_;
  std::shared_ptr<HelpBoards> boards_;
  bool usable_ = false;
  std::vector<Running> running_;
  Stopwatch since_start_;
};

}  // namespace ferry
