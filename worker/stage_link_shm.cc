#include "worker/stage_link_shm.h"

#include <optional>
#include <utility>

#include "common/deadline.h"
#include "common/log.h"

namespace ferry {
namespace {

// A ring whose slots are pinned until this is destroyed.
class PinnedRing {
 public:
  PinnedRing(std::unique_ptr<ActivationRing> ring, Ops* ops) : ring_(std::move(ring)), ops_(*ops) {}
  PinnedRing(const PinnedRing&) = delete;
  ~PinnedRing() {
    if (pinned_) ops_.UnpinHost(ring_->slots());
  }

  ActivationRing& ring() { return *ring_; }
  void Pin() {
    if (std::exchange(tried_, true)) return;
    const absl::Status pinned = ops_.PinHost(ring_->slots(), /*read_only=*/false);
    if (!pinned.ok()) spdlog::warn("hidden states cannot be pinned, and travel slower: {}", pinned.ToString());
    pinned_ = pinned.ok();
  }

 private:
  const std::unique_ptr<ActivationRing> ring_;
  Ops& ops_;
  bool tried_ = false, pinned_ = false;
};

class RingSink final : public ActivationSink {
 public:
  RingSink(std::unique_ptr<ActivationRing> ring, Ops* ops) : memory_(std::move(ring), ops) {}

  absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, Deadline deadline) override {
    memory_.Pin();
    const RingShape& shape = memory_.ring().shape();
    ASSIGN_OR_RETURN(const std::span<float> slot, memory_.ring().Reserve(deadline));
    num_rows_ = std::min(num_rows, shape.rows_per_slot);
    return slot.first(num_rows_ * shape.n_embd);
  }
  absl::Status Send(uint64_t step, int64_t first_row, Deadline) override {
    memory_.ring().Commit(step, first_row, num_rows_);
    return absl::OkStatus();
  }
  absl::Status SendFailure(uint64_t step, const std::string& error, Deadline deadline) override {
    RETURN_IF_ERROR(memory_.ring().Reserve(deadline).status());
    memory_.ring().CommitFailure(step, error);
    return absl::OkStatus();
  }
  absl::Status Announce(uint64_t step, int64_t first_row, int64_t num_rows, Deadline deadline) override {
    RETURN_IF_ERROR(memory_.ring().Reserve(deadline).status());
    memory_.ring().CommitAnnouncement(step, first_row, num_rows);
    return absl::OkStatus();
  }
  absl::Status AwaitDropped(Deadline deadline) override { return memory_.ring().AwaitReleased(deadline); }
  void Abort() override { memory_.ring().Abort(); }

 private:
  PinnedRing memory_;
  int64_t num_rows_ = 0;  // reserved
};

class RingSource final : public ActivationSource {
 public:
  RingSource(std::unique_ptr<ActivationRing> ring, Ops* ops) : memory_(std::make_shared<PinnedRing>(std::move(ring), ops)) {}

  absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, Deadline deadline) override {
    memory_->Pin();
    ActivationRing& ring = memory_->ring();
    while (true) {
      if (!front_) {
        ASSIGN_OR_RETURN(front_, ring.Next(deadline));
      }
      if (front_->step >= step) break;
      // What an earlier step, which failed here, left behind.
      if (front_->announced_rows > 0) return MissedAnnouncement(front_->step);
      front_.reset();
      ring.Release();
    }
    RETURN_IF_ERROR(CheckNextChunk(step, first_row, front_->step, front_->first_row, front_->error));
    ActivationChunk chunk = {
        .first_row = first_row, .announced_rows = front_->announced_rows, .values = front_->rows, .owner = nullptr};
    // Gives the slot back when the last user drops it.
    chunk.owner = std::shared_ptr<const void>(&ring, [memory = memory_](const void*) { memory->ring().Release(); });
    front_.reset();
    return chunk;
  }
  void Abort() override { memory_->ring().Abort(); }

 private:
  const std::shared_ptr<PinnedRing> memory_;
  std::optional<ActivationRing::Entry> front_;  // taken, and not given out
};

}  // namespace

std::unique_ptr<ActivationSink> MakeRingSink(std::unique_ptr<ActivationRing> ring, Ops* ops) {
  return std::make_unique<RingSink>(std::move(ring), ops);
}
std::unique_ptr<ActivationSource> MakeRingSource(std::unique_ptr<ActivationRing> ring, Ops* ops) {
  return std::make_unique<RingSource>(std::move(ring), ops);
}

}  // namespace ferry
