#pragma once

// Hidden states in memory that two workers of one host share: a ring of slots, each for some rows of a step. The writer fills a
// slot in place and the reader reads it in place.
//
// The reader makes a new ring for each epoch, so a writer of an earlier epoch that wakes up late writes into memory that nobody
// reads.
//
// Neither side trusts the other: the reader copies an entry's numbers out before it checks and uses them, and computes a slot's
// address from its own count of slots. Rows are plain numbers.
//
// Both sides wait as common/shm/ring_wait.h does: paced, on a futex on the other side's counter, with a deadline.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/deadline.h"
#include "common/shm/ring_wait.h"
#include "common/shm/shared_region.h"
#include "common/status.h"

namespace ferry {

struct RingShape {
  int64_t n_embd = 0;
  int64_t rows_per_slot = 0;
  int64_t num_slots = 0;  // a power of two
  bool operator==(const RingShape&) const = default;
};

// The shape for steps of at most max_rows rows: room for a whole step, up to 64 MiB, so that its sender can start the next one.
RingShape RingShapeFor(int64_t n_embd, int64_t max_rows);

class ActivationRing {
 public:
  static constexpr size_t kMaxErrorBytes = 512;

  // The reader makes the memory and passes fd() on.
  static absl::StatusOr<std::unique_ptr<ActivationRing>> Create(const RingShape& shape);
  // The writer maps it; takes the descriptor. InvalidArgument: the memory was made for another shape, is too small, or may
  // shrink.
  static absl::StatusOr<std::unique_ptr<ActivationRing>> Map(int fd, const RingShape& shape);

  int fd() const { return memory_.fd(); }
  const RingShape& shape() const { return shape_; }
  std::span<std::byte> slots() const;  // the memory of all rows, on whole pages

  // Running and later waits of this side return Aborted. Any thread.
  void Abort();
  // This side's later waits that are expected to be shorter do not sleep. Before the first wait.
  void StayAwake(absl::Duration longest) { wait_.StayAwake(longest); }

  // The writer's side, one thread: Reserve, fill, Commit.
  // The next slot's rows [rows_per_slot, n_embd], once the reader has released it. DeadlineExceeded: it did not.
  absl::StatusOr<std::span<float>> Reserve(Deadline deadline);
  void Commit(uint64_t step, int64_t first_row, int64_t num_rows);
  void CommitFailure(uint64_t step, const std::string& error);
  void CommitAnnouncement(uint64_t step, int64_t first_row, int64_t num_rows);  // of rows that come by another way
  // Waits until the reader has released every entry. DeadlineExceeded, Aborted.
  absl::Status AwaitReleased(Deadline deadline);

  // The reader's side, one thread. An entry's rows are valid until Release, which releases the oldest entry.
  struct Entry {
    uint64_t step = 0;
    int64_t first_row = 0;
    std::span<const float> rows;  // [n, n_embd]
    int64_t announced_rows = 0;   // not 0: they come by another way, and there are no rows here
    std::string error;            // not empty: the step failed, and there are no rows
  };
  // DeadlineExceeded: no entry came. Internal: a number of the writer's is out of range.
  absl::StatusOr<Entry> Next(Deadline deadline);
  void Release();

 private:
  ActivationRing(const RingShape& shape, SharedRegion memory)
      : shape_(shape), memory_(std::move(memory)), data_(memory_.data()) {}

  std::span<float> RowsOf(uint32_t number) const;
  void CommitRows(uint64_t step, int64_t first_row, int64_t num_rows, uint32_t error_bytes);

  const RingShape shape_;
  const SharedRegion memory_;
  std::byte* const data_;
  RingWait wait_{"the epoch is over"};
  uint32_t written_ = 0;  // the writer's count of entries
  uint32_t taken_ = 0;    // the reader's
  uint32_t released_ = 0;
};

}  // namespace ferry
