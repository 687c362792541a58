#pragma once

// Messages through memory that two processes of one host share: a ring of slots that one side writes and the other reads. It is
// for messages too small and frequent for gRPC, whose threads wake each other nine times for a decode step and its answer
// (docs/measurements/decode_gpu.md). A message longer than a slot takes several.
//
// The reader trusts nothing: it copies sizes out before it checks them, computes a slot's address from its own count of slots,
// and copies a message before anyone parses it.
//
// Both sides wait as common/shm/ring_wait.h does: paced, on a futex on the other side's counter, with a deadline.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/deadline.h"
#include "common/shm/ring_wait.h"
#include "common/shm/shared_region.h"
#include "common/status.h"

namespace ferry {

class MessageRing {
 public:
  static constexpr int64_t kSlotBytes = 16 << 10;
  static constexpr int64_t kNumSlots = 256;                        // a power of two; 4 MiB of memory, whose pages exist once used
  static constexpr int64_t kMaxMessageBytes = int64_t{256} << 20;  // the logits of a batch over the whole vocabulary

  // One side makes the memory and passes fd() on.
  static absl::StatusOr<std::unique_ptr<MessageRing>> Create();
  // The other side maps it; takes the descriptor. InvalidArgument: the memory is no such ring, is too small, or may shrink.
  static absl::StatusOr<std::unique_ptr<MessageRing>> Map(int fd);
  MessageRing(const MessageRing&) = delete;
  MessageRing& operator=(const MessageRing&) = delete;

  int fd() const { return memory_.fd(); }
  // Running and later waits of this side return Aborted. Any thread.
  void Abort();

  // The writing side, one thread at a time. InvalidArgument: empty, or longer than kMaxMessageBytes. DeadlineExceeded: the reader
  // made no room; the ring cannot be used after that, since a part of the message may be in it.
  absl::Status Write(std::string_view message, Deadline deadline);
  // The reading side, one thread. DeadlineExceeded: no whole message came yet. Internal: an invalid size, after
  // which the ring cannot be read any more.
  absl::StatusOr<std::string> Read(Deadline deadline);

 private:
  explicit MessageRing(SharedRegion memory) : memory_(std::move(memory)), data_(memory_.data()) {}

  const SharedRegion memory_;
  std::byte* const data_;
  RingWait wait_{"the exchange of messages is over"};
  uint32_t written_ = 0;  // the writer's count of slots
  uint32_t read_ = 0;     // the reader's
  std::string part_;      // the beginning of a message whose end has not come
  uint32_t rest_ = 0;     // bytes of it still to come
};

}  // namespace ferry
