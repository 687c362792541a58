#pragma once

// Shared memory in which a worker, its owner, posts shares of a layer's experts for other workers of the host, its helpers. The
// coordinator makes one board a worker for each epoch and hands all of them to every worker, so nothing of an earlier epoch is
// met here.
//
// The rows of a layer lie once, for all helpers, in the board's own memory or in memory of the owner's device that the helper
// reaches. Each helper has a request of its own, and a range of the contributions to fill. The owner may withdraw a request that
// its helper has not taken.
//
// Neither side trusts the other: counts and ids are copied out before they are checked and used, and addresses are computed from
// checked numbers alone. Rows and contributions are plain numbers and need no check. Every wait has a deadline.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/model/dtype.h"
#include "common/shm/expert_mailbox.h"
#include "common/shm/expert_region.h"
#include "common/status.h"

namespace ferry {

// Capacities for the requests of all helpers together.
struct HelpBoardShape {
  int64_t n_embd = 0;
  int64_t max_rows = 0;     // of a layer
  int64_t max_entries = 0;  // (row, expert) pairs of all requests together = contribution rows
  int64_t max_experts = 0;  // of the model: uses of one request
  // Of a layer whose rows and contributions lie on the board itself, which is pinned memory of each worker, at most so many rows.
  int64_t most_board_rows = 8192;
  bool operator==(const HelpBoardShape&) const = default;

  ExpertRegionShape region() const {
    return {.n_embd = n_embd, .max_rows = max_rows, .max_entries = max_entries, .max_experts = max_experts};
  }
  int64_t board_rows() const { return max_rows < most_board_rows ? max_rows : most_board_rows; }
  int64_t board_entries() const { return max_rows > 0 ? (max_entries * board_rows() + max_rows - 1) / max_rows : 0; }
  // Bytes of max_rows rows, whole blocks of 256, and behind them of max_entries contributions in a device's memory.
  int64_t row_bytes(DType type) const;
  int64_t contribution_bytes(DType type) const;
};
// The shape for steps of up to max_rows rows of top_k experts each. Helpers get up to half of a layer's contributions.
HelpBoardShape HelpShapeFor(int64_t n_embd, int64_t max_rows, int64_t top_k, int64_t max_experts);

// A share for one helper. The types are the owner's: a helper with other ones refuses, since its bits would differ.
struct HelpRequest {
  ExpertRequest share;  // kCompute; the incarnation is not used
  DType row_type = DType::kF32, contribution_type = DType::kF32;
  int64_t first_entry = 0;  // where this helper's entries begin in the contributions
  bool on_device = false;   // rows and contributions lie in the owner's device memory, not on the board
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
  // Rows [board_rows, n_embd] and contributions [board_entries, n_embd], row-major, of at most 4 bytes a number.
  std::span<std::byte> rows() const;
  std::span<std::byte> contributions() const;

  // The owner's memory for rows and contributions on its device (kernels/peer_memory.h): the owner publishes its key, or that it
  // has none.
  static constexpr size_t kKeyBytes = 64;
  void PublishMemory(std::span<const std::byte> key);  // kKeyBytes; empty: there is none
  // Nullopt: not published yet. Empty: there is none.
  std::optional<std::string> memory_key() const;
  // How many bytes a second a helper copies out of that memory; 0: it does not reach it. Set by the helper.
  void SetReach(int64_t helper, double bytes_per_second);
  double reach(int64_t helper) const;

  // The board's owner as a helper of others: whether it has nothing else to do.
  void SetAvailable(bool available);
  bool available() const;
  // When the board's owner expects to have nothing else to do, and whether that is within `time` from now.
  void ExpectAvailable(absl::Duration from_now);
  bool AvailableWithin(absl::Duration time) const;
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
