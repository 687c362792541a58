#include "worker/activation_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "common/checked_size.h"
#include "common/deadline.h"
#include "common/shm/futex.h"
#include "worker/stage_link.h"

namespace ferry {
namespace {

constexpr uint32_t kMagic = 0x47525846;  // "FXRG"
constexpr int64_t kRingPage = 4096;
constexpr int64_t kMaxBytes = int64_t{64} << 20;
constexpr int64_t kMaxSlots = 1024;
constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by the counters

constexpr uint32_t kAnnouncement = UINT32_MAX;
constexpr int64_t kMaxAnnouncedRows = 1 << 20;

// What the other side may write while we read is atomic, read once, and checked after that.
struct Head {
  std::atomic<uint64_t> step;
  std::atomic<uint32_t> first_row, num_rows;
  std::atomic<uint32_t> error_bytes;  // not 0: a failure, or kAnnouncement
  std::atomic<uint32_t> error[ActivationRing::kMaxErrorBytes / 4];
};

// The start of the region. The heads follow, one a slot, then, on the next page, the slots.
struct Control {
  // Constant after Create.
  uint32_t magic;
  uint32_t num_slots;
  uint64_t n_embd, rows_per_slot;

  alignas(64) std::atomic<uint32_t> written;   // entries: raised by the writer when one is complete
  alignas(64) std::atomic<uint32_t> released;  // raised by the reader when a slot may be written again
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "atomics of two processes must not need a lock");

Control& ControlOf(std::byte* data) { return *reinterpret_cast<Control*>(data); }
Head& HeadOf(std::byte* data, const RingShape& shape, uint32_t number) {
  return reinterpret_cast<Head*>(data + sizeof(Control))[number % shape.num_slots];
}

CheckedSize SlotsOffset(const RingShape& shape) {
  return (CheckedSize(sizeof(Control)) + CheckedSize(shape.num_slots) * sizeof(Head)).AlignedUp(kRingPage);
}
CheckedSize SlotBytes(const RingShape& shape) {
  return (CheckedSize(shape.rows_per_slot) * shape.n_embd * sizeof(float)).AlignedUp(kRingPage);
}

// Of the whole region.
absl::StatusOr<int64_t> BytesOf(const RingShape& shape) {
  const auto check = [](const char* name, int64_t value, int64_t last) {
    if (value >= 1 && value <= last) return absl::OkStatus();
    return InvalidArgument("%s of a ring of hidden states is %d, want 1 to %d", name, value, last);
  };
  RETURN_IF_ERROR(check("n_embd", shape.n_embd, 1 << 20));
  RETURN_IF_ERROR(check("rows_per_slot", shape.rows_per_slot, 1 << 20));
  RETURN_IF_ERROR(check("num_slots", shape.num_slots, kMaxSlots));
  // Or else entries in flight would share a slot when their numbers pass 2^32.
  if (!std::has_single_bit(static_cast<uint64_t>(shape.num_slots))) {
    return InvalidArgument("num_slots of a ring of hidden states is %d, want a power of two", shape.num_slots);
  }
  const CheckedSize bytes = SlotsOffset(shape) + SlotBytes(shape) * shape.num_slots;
  if (!bytes.valid()) return InvalidArgument("a ring of hidden states is too large");
  return static_cast<int64_t>(bytes.value());
}

}  // namespace

RingShape RingShapeFor(int64_t n_embd, int64_t max_rows) {
  const int64_t row_bytes = n_embd * static_cast<int64_t>(sizeof(float));
  const int64_t rows_per_slot = std::min(RowsOfAMessage(n_embd), max_rows);
  const int64_t for_a_step = (max_rows + rows_per_slot - 1) / rows_per_slot;
  const auto slots = static_cast<uint64_t>(std::min({kMaxSlots, for_a_step, kMaxBytes / (rows_per_slot * row_bytes)}));
  return {.n_embd = n_embd,
          .rows_per_slot = rows_per_slot,
          .num_slots = static_cast<int64_t>(std::bit_floor(std::max<uint64_t>(slots, 2)))};  // one read, one written
}

absl::StatusOr<std::unique_ptr<ActivationRing>> ActivationRing::Create(const RingShape& shape) {
  ASSIGN_OR_RETURN(const int64_t bytes, BytesOf(shape));
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Create("ferry-hidden-states", bytes));
  auto* const control = new (memory.data()) Control();
  control->magic = kMagic;
  control->num_slots = static_cast<uint32_t>(shape.num_slots);
  control->n_embd = static_cast<uint64_t>(shape.n_embd);
  control->rows_per_slot = static_cast<uint64_t>(shape.rows_per_slot);
  return std::unique_ptr<ActivationRing>(new ActivationRing(shape, std::move(memory)));
}

absl::StatusOr<std::unique_ptr<ActivationRing>> ActivationRing::Map(int fd, const RingShape& shape) {
  UniqueFd taken(fd);
  ASSIGN_OR_RETURN(const int64_t bytes, BytesOf(shape));
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Map(taken.Release(), bytes));
  std::unique_ptr<ActivationRing> ring(new ActivationRing(shape, std::move(memory)));
  const Control& control = ControlOf(ring->data_);
  if (control.magic != kMagic || control.num_slots != shape.num_slots || control.n_embd != static_cast<uint64_t>(shape.n_embd) ||
      control.rows_per_slot != static_cast<uint64_t>(shape.rows_per_slot)) {
    return InvalidArgument("the ring of hidden states was made for another shape");
  }
  return ring;
}

std::span<std::byte> ActivationRing::slots() const {
  const size_t begin = SlotsOffset(shape_).value();
  return {data_ + begin, SlotBytes(shape_).value() * shape_.num_slots};
}

std::span<float> ActivationRing::RowsOf(uint32_t number) const {
  const size_t slot_bytes = SlotBytes(shape_).value();
  return {reinterpret_cast<float*>(slots().data() + number % shape_.num_slots * slot_bytes),
          static_cast<size_t>(shape_.rows_per_slot * shape_.n_embd)};
}

void ActivationRing::Abort() {
  Control& control = ControlOf(data_);
  wait_.Abort({&control.written, &control.released});
}

// ----------------------------------------------------------------------------------------------------------------- the writer

absl::StatusOr<std::span<float>> ActivationRing::Reserve(Deadline deadline) {
  const std::atomic<uint32_t>& released = ControlOf(data_).released;
  const absl::Status waited = wait_.Until(released, deadline, [&] {
    return written_ - released.load(std::memory_order_acquire) < static_cast<uint32_t>(shape_.num_slots);
  });
  if (absl::IsDeadlineExceeded(waited)) return DeadlineExceeded("the next worker took no hidden states in time");
  RETURN_IF_ERROR(waited);
  return RowsOf(written_);
}

void ActivationRing::CommitRows(uint64_t step, int64_t first_row, int64_t num_rows, uint32_t error_bytes) {
  Head& to = HeadOf(data_, shape_, written_);
  to.step.store(step, kRelaxed);
  to.first_row.store(static_cast<uint32_t>(first_row), kRelaxed);
  to.num_rows.store(static_cast<uint32_t>(num_rows), kRelaxed);
  to.error_bytes.store(error_bytes, kRelaxed);
  ControlOf(data_).written.store(++written_, std::memory_order_release);
  FutexWake(ControlOf(data_).written, FutexScope::kShared);
}

void ActivationRing::Commit(uint64_t step, int64_t first_row, int64_t num_rows) {
  CommitRows(step, first_row, num_rows, /*error_bytes=*/0);
}

void ActivationRing::CommitAnnouncement(uint64_t step, int64_t first_row, int64_t num_rows) {
  CommitRows(step, first_row, num_rows, kAnnouncement);
}

absl::Status ActivationRing::AwaitReleased(Deadline deadline) {
  const std::atomic<uint32_t>& released = ControlOf(data_).released;
  return wait_.Until(released, deadline, [&] { return released.load(std::memory_order_acquire) == written_; });
}

void ActivationRing::CommitFailure(uint64_t step, const std::string& error) {
  Head& to = HeadOf(data_, shape_, written_);
  const std::string text = (error.empty() ? "it failed" : error).substr(0, kMaxErrorBytes);
  for (size_t at = 0; at < text.size(); at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, text.data() + at, std::min<size_t>(4, text.size() - at));
    to.error[at / 4].store(word, kRelaxed);
  }
  to.step.store(step, kRelaxed);
  to.error_bytes.store(static_cast<uint32_t>(text.size()), kRelaxed);
  ControlOf(data_).written.store(++written_, std::memory_order_release);
  FutexWake(ControlOf(data_).written, FutexScope::kShared);
}

// ----------------------------------------------------------------------------------------------------------------- the reader

absl::StatusOr<ActivationRing::Entry> ActivationRing::Next(Deadline deadline) {
  const std::atomic<uint32_t>& written = ControlOf(data_).written;
  RETURN_IF_ERROR(wait_.Until(written, deadline, [&] { return written.load(std::memory_order_acquire) != taken_; }));
  const uint32_t ahead = written.load(std::memory_order_acquire) - released_;
  if (ahead > static_cast<uint32_t>(shape_.num_slots)) {
    return Internal("the previous worker wrote %d entries into a ring of %d", ahead, shape_.num_slots);
  }
  const Head& from = HeadOf(data_, shape_, taken_);
  Entry entry = {.step = from.step.load(kRelaxed)};
  const uint32_t first_row = from.first_row.load(kRelaxed), num_rows = from.num_rows.load(kRelaxed);
  const uint32_t error_bytes = from.error_bytes.load(kRelaxed);
  if (error_bytes == kAnnouncement) {
    if (num_rows < 1 || num_rows > kMaxAnnouncedRows) {
      return Internal("num_rows that the previous worker announces is %d, want 1 to %d", num_rows, kMaxAnnouncedRows);
    }
    entry.first_row = first_row;
    entry.announced_rows = num_rows;
    ++taken_;
    return entry;
  }
  if (error_bytes > kMaxErrorBytes) {
    return Internal("the previous worker's error has %d bytes, want at most %d", error_bytes, kMaxErrorBytes);
  }
  if (error_bytes > 0) {
    entry.error.resize(kMaxErrorBytes);
    for (size_t at = 0; at < kMaxErrorBytes; at += 4) {
      const uint32_t word = from.error[at / 4].load(kRelaxed);
      std::memcpy(entry.error.data() + at, &word, 4);
    }
    entry.error.resize(error_bytes);
  } else {
    if (num_rows < 1 || num_rows > shape_.rows_per_slot) {
      return Internal("num_rows of the previous worker's hidden states is %d, want 1 to %d", num_rows, shape_.rows_per_slot);
    }
    entry.first_row = first_row;
    entry.rows = RowsOf(taken_).first(num_rows * shape_.n_embd);
  }
  ++taken_;
  return entry;
}

void ActivationRing::Release() {
  ControlOf(data_).released.store(++released_, std::memory_order_release);
  FutexWake(ControlOf(data_).released, FutexScope::kShared);
}

}  // namespace ferry
