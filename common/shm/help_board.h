#pragma once

// Shared memory in which a worker, its owner, posts shares of a layer's experts for other workers of the host, its helpers. The
// coordinator makes one board a worker for each epoch and hands all of them to every worker, so nothing of an earlier epoch is
// met here.
//
// The rows of a layer lie on the board once, for all helpers. Each helper has a request of its own, and a range of the
// contributions to fill. The owner may withdraw a request that its helper has not taken.
//
// Neither side trusts the other: counts and ids are copied out before they are checked and used, and addresses are computed from
// checked numbers alone. Rows and contributions are plain numbers and need no check. Every wait has a deadline.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "common/deadline.h"
#include "common/model/dtype.h"
#include "common/shm/expert_mailbox.h"
#include "common/shm/expert_region.h"
#include "common/status.h"

namespace ferry {

// Capacities for the requests of all helpers together.
using HelpBoardShape = ExpertRegionShape;

// A share for one helper. The types are the owner's: a helper with other ones refuses, since its bits would differ.
struct HelpRequest {
  ExpertRequest share;  // kCompute; the incarnation is not used
  DType row_type = DType::kF32, contribution_type = DType::kF32;
  int64_t first_entry = 0;  // where this helper's entries begin in the board's contributions
};

class HelpBoard {
 public:
  // The coordinator makes the memory, all zeros, and passes fd() on. InvalidArgument: a size is out of range.
  static absl::StatusOr<std::unique_ptr<HelpBoard>> Create(const HelpBoardShape& shape);
  // A worker maps it; takes the descriptor. InvalidArgument: it was made for another shape, is too small, or may shrink.
  static absl::StatusOr<std::unique_ptr<HelpBoard>> Map(int fd, const HelpBoardShape& shape);
  ~HelpBoard();

  int fd() const;
  const HelpBoardShape& shape() const;
  // Rows [max_rows, n_embd] and contributions [max_entries, n_embd], row-major, of at most 4 bytes a number.
  std::span<std::byte> rows() const;
  std::span<std::byte> contributions() const;

  // The board's owner as a helper of others: whether it has nothing else to do.
  void SetAvailable(bool available);
  bool available() const;
  // Wakes the board's owner: another worker has posted a request for it on its own board. Any process.
  void Ring();
  uint32_t bell() const;  // changes with each Ring
  // Sleeps until the bell is no longer `seen`, or `until`; it may also return for no reason.
  void WaitForBell(uint32_t seen, Deadline until) const;

  // The owner's side, one thread. Posts a request; then one of WaitForAnswer and a Withdraw that returns true ends it.
  // FailedPrecondition: the helper's last request has not ended. ResourceExhausted: more than the board holds.
  absl::Status Post(int64_t helper, const HelpRequest& request);
  // Takes the request back unless the helper has taken it: whether it has not.
  bool Withdraw(int64_t helper);
  // OK: the contributions are there. DeadlineExceeded: they are not, and the helper may still write them: its range must not be
  // used again. Internal: the helper failed.
  absl::Status WaitForAnswer(int64_t helper, Deadline deadline);

  // The helper's side, one thread. Whether a request waits to be taken.
  bool Posted(int64_t helper) const;
  // Takes the request, copied out of the board and checked against the shape. Nullopt: there is none. A request that fails the
  // check is answered, and its error returned.
  absl::StatusOr<std::optional<HelpRequest>> Take(int64_t helper, int64_t num_layers);
  // Answers the request that was taken.
  void Answer(int64_t helper, const absl::Status& status);

 private:
  struct Impl;
  explicit HelpBoard(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
