#pragma once

// Hidden states in memory that two workers of one host share: a ring of slots, each for some rows of a step, written by the one
// and read by the other without a copy between them.
//
// The reader makes one ring an epoch, so that a writer of an earlier one, which may wake up late, writes where nobody looks.
//
// Neither trusts the other's words: the reader copies an entry's numbers out before it checks and uses them, and a slot's
// address follows from how many were taken before, never from what the writer says. Rows are plain numbers.
//
// Waiting: paced (common/shm/ring_wait.h), on a futex on the other side's counter, always with a deadline.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/time/time.h"
#include "common/shm/memfd.h"
#include "common/shm/ring_wait.h"
#include "common/status.h"

namespace ferry {

struct RingShape {
  int64_t n_embd = 0;
  int64_t rows_per_slot = 0;
  int64_t num_slots = 0;  // a power of two
  bool operator==(const RingShape&) const = default;
};

// For steps of at most max_rows rows: the whole of a step, so that its sender can go on with the next, up to 64 MiB.
RingShape RingShapeFor(int64_t n_embd, int64_t max_rows);

class ActivationRing {
 public:
  static constexpr size_t kMaxErrorBytes = 512;

  // The reader's side makes the memory; fd() is what it passes on.
  static absl::StatusOr<std::unique_ptr<ActivationRing>> Create(const RingShape& shape);
  // The writer's side maps it. Takes the descriptor. InvalidArgument: made for another shape, too small, or it may shrink.
  static absl::StatusOr<std::unique_ptr<ActivationRing>> Map(int fd, const RingShape& shape);
  ~ActivationRing();

  int fd() const { return memfd_.fd.get(); }
  const RingShape& shape() const { return shape_; }
  std::span<std::byte> slots() const;  // the memory of all rows, on whole pages

  // Ends this side's waits, and those to come, with Aborted. Any thread.
  void Abort();

  // The writer's side, one thread. Reserve, fill, Commit.
  // The next slot's rows [rows_per_slot, n_embd], once the reader has given it back. DeadlineExceeded: it has not.
  absl::StatusOr<std::span<float>> Reserve(absl::Time deadline);
  void Commit(uint64_t step, int64_t first_row, int64_t num_rows);
  void CommitFailure(uint64_t step, const std::string& error);

  // The reader's side, one thread. What Next gives is the reader's until it is given back by Release, oldest first.
  struct Entry {
    uint64_t step = 0;
    int64_t first_row = 0;
    std::span<const float> rows;  // [n, n_embd]
    std::string error;            // not empty: the step failed, and there are no rows
  };
  // DeadlineExceeded: nothing came. Internal: an entry that cannot be.
  absl::StatusOr<Entry> Next(absl::Time deadline);
  void Release();

 private:
  ActivationRing(const RingShape& shape, Memfd memfd, std::byte* data) : shape_(shape), memfd_(std::move(memfd)), data_(data) {}

  std::span<float> RowsOf(uint32_t number) const;

  const RingShape shape_;
  const Memfd memfd_;
  std::byte* const data_;
  RingWait wait_{"the epoch is over"};
  uint32_t written_ = 0;  // the writer's count of entries
  uint32_t taken_ = 0;    // the reader's
  uint32_t released_ = 0;
};

}  // namespace ferry
