#include "common/shm/message_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "common/deadline.h"
#include "common/shm/futex.h"

namespace ferry {
namespace {

constexpr uint32_t kMagic = 0x474d5846;  // "FXMG"
constexpr int64_t kPage = 4096;
constexpr auto kRelaxed = std::memory_order_relaxed;  // ordered by the counters

// The start of the region; the slots follow on the next page.
struct Control {
  uint32_t magic;                              // constant after Create
  alignas(64) std::atomic<uint32_t> written;   // slots: raised by the writer when one is complete
  alignas(64) std::atomic<uint32_t> released;  // raised by the reader when one may be written again
  // Of each slot: bytes of its message from there on. What the other side may write while we read is atomic, read once, and
  // checked after that.
  alignas(64) std::atomic<uint32_t> rest[MessageRing::kNumSlots];
};
static_assert(std::has_single_bit(static_cast<uint64_t>(MessageRing::kNumSlots)), "or slots would be shared beyond 2^32 of them");
constexpr int64_t kSlotsOffset = (static_cast<int64_t>(sizeof(Control)) + kPage - 1) / kPage * kPage;
constexpr int64_t kBytes = kSlotsOffset + MessageRing::kNumSlots * MessageRing::kSlotBytes;

Control& ControlOf(std::byte* data) { return *reinterpret_cast<Control*>(data); }
std::byte* SlotOf(std::byte* data, uint32_t number) {
  return data + kSlotsOffset + number % MessageRing::kNumSlots * MessageRing::kSlotBytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MessageRing>> MessageRing::Create() {
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Create("ferry-messages", kBytes));
  (new (memory.data()) Control())->magic = kMagic;
  return std::unique_ptr<MessageRing>(new MessageRing(std::move(memory)));
}

absl::StatusOr<std::unique_ptr<MessageRing>> MessageRing::Map(int fd) {
  ASSIGN_OR_RETURN(SharedRegion memory, SharedRegion::Map(fd, kBytes));
  std::unique_ptr<MessageRing> ring(new MessageRing(std::move(memory)));
  if (ControlOf(ring->data_).magic != kMagic) return InvalidArgument("the memory for messages was made for something else");
  return ring;
}

void MessageRing::Abort() {
  Control& control = ControlOf(data_);
  wait_.Abort({&control.written, &control.released});
}

absl::Status MessageRing::Write(std::string_view message, Deadline deadline) {
  if (message.empty() || static_cast<int64_t>(message.size()) > kMaxMessageBytes) {
    return InvalidArgument("a message has %d bytes, want 1 to %d", message.size(), kMaxMessageBytes);
  }
  Control& control = ControlOf(data_);
  for (size_t at = 0; at < message.size(); at += kSlotBytes) {
    RETURN_IF_ERROR(wait_.Until(control.released, deadline, [&] {
      return written_ - control.released.load(std::memory_order_acquire) < static_cast<uint32_t>(kNumSlots);
    }));
    const std::string_view part = message.substr(at, kSlotBytes);
    std::memcpy(SlotOf(data_, written_), part.data(), part.size());
    control.rest[written_ % kNumSlots].store(static_cast<uint32_t>(message.size() - at), kRelaxed);
    control.written.store(++written_, std::memory_order_release);
    FutexWake(control.written, FutexScope::kShared);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> MessageRing::Read(Deadline deadline) {
  Control& control = ControlOf(data_);
  do {
    RETURN_IF_ERROR(
        wait_.Until(control.written, deadline, [&] { return control.written.load(std::memory_order_acquire) != read_; }));
    const uint32_t ahead = control.written.load(std::memory_order_acquire) - read_;
    if (ahead > static_cast<uint32_t>(kNumSlots)) return Internal("%d slots were written into a ring of %d", ahead, kNumSlots);
    const uint32_t rest = control.rest[read_ % kNumSlots].load(kRelaxed);
    if (rest_ == 0 ? rest < 1 || rest > kMaxMessageBytes : rest != rest_) {
      return Internal("a part of a message says that %d bytes are to come, want %s", rest,
                      rest_ == 0 ? absl::StrFormat("1 to %d", kMaxMessageBytes) : std::to_string(rest_));
    }
    const size_t bytes = std::min<size_t>(rest, kSlotBytes);
    part_.append(reinterpret_cast<const char*>(SlotOf(data_, read_)), bytes);
    rest_ = rest - static_cast<uint32_t>(bytes);
    control.released.store(++read_, std::memory_order_release);
    FutexWake(control.released, FutexScope::kShared);
  } while (rest_ > 0);
  return std::exchange(part_, {});
}

}  // namespace ferry
