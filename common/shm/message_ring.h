#pragma once

// Messages in memory that two processes of one host share: a ring of slots, written by one side and read by the other, for what
// is too small and too frequent for gRPC, whose threads wake each other nine times for a step of decode and its answer
// (docs/measurements/decode_gpu.md). A message longer than a slot takes several.
//
// The reader trusts nothing: sizes are copied out before they are checked, a slot's address follows from how many were read
// before, and a message is the reader's own copy before anyone parses it.
//
// Waiting: paced (common/shm/ring_wait.h), on a futex on the other side's counter, always with a deadline.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "common/shm/memfd.h"
#include "common/shm/ring_wait.h"
#include "common/status.h"

namespace ferry {

class MessageRing {
 public:
  static constexpr int64_t kSlotBytes = 16 << 10;
  static constexpr int64_t kNumSlots = 256;  // a power of two: 4 MiB, of which only what is used is ever touched
  static constexpr int64_t kMaxMessageBytes = int64_t{256} << 20;  // the logits of a batch over the whole vocabulary

  // One side makes the memory, and passes fd() on.
  static absl::StatusOr<std::unique_ptr<MessageRing>> Create();
  // The other maps it. Takes the descriptor. InvalidArgument: it is no such ring, too small, or it may shrink.
  static absl::StatusOr<std::unique_ptr<MessageRing>> Map(int fd);
  ~MessageRing();
  MessageRing(const MessageRing&) = delete;
  MessageRing& operator=(const MessageRing&) = delete;

  int fd() const { return memfd_.fd.get(); }
  // Ends this side's waits, and those to come, with Aborted. Any thread.
  void Abort();

  // The writing side, one thread at a time. InvalidArgument: empty, or longer than kMaxMessageBytes. DeadlineExceeded: the reader
  // makes no room; the ring is of no use after that, since a part of the message may be in it.
  absl::Status Write(std::string_view message, absl::Time deadline);
  // The reading side, one thread. DeadlineExceeded: no whole message came yet. Internal: a size that cannot be, after which there
  // is nothing more to read.
  absl::StatusOr<std::string> Read(absl::Time deadline);

 private:
  MessageRing(Memfd memfd, std::byte* data) : memfd_(std::move(memfd)), data_(data) {}

  const Memfd memfd_;
  std::byte* const data_;
  RingWait wait_{"the exchange of messages is over"};
  uint32_t written_ = 0;  // the writer's count of slots
  uint32_t read_ = 0;     // the reader's
  std::string part_;      // of a message that has not come whole
  uint32_t rest_ = 0;     // bytes of it that are to come
};

}  // namespace ferry
