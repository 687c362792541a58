#pragma once

// Brings records of experts from the coordinator into pinned buffers. A few threads, each with a RecordSource of its own, take
// the records that were asked for one after the other.

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <thread>
#include <vector>

#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "kernels/ops.h"
#include "worker/expert_link.h"

namespace ferry {

class RecordSource {
 public:
  virtual ~RecordSource() = default;
  // Of one thread: fills `buffer` with the record of `id`, asked for in `step`. Aborted: the step is over there. Other errors are
  // those of ExpertLink::WaitRecord.
  virtual absl::Status Fetch(uint64_t step, ExpertId id, std::span<std::byte> buffer) = 0;
  // Any thread: the record that is being fetched is not wanted any more. Fetch may go on to its end, or return any error at once.
  virtual void GiveUp() = 0;
  // Any thread: Fetch returns soon, now and later.
  virtual void Stop() = 0;
};

// Functions as in ExpertLink, of the compute thread.
class RecordFetchers {
 public:
  // `arena` and `ops` outlive it. A failure to pin the buffers is logged as a warning, and copies are slower. ResourceExhausted:
  // no thread can be started.
  static absl::StatusOr<std::unique_ptr<RecordFetchers>> Start(const ArenaLayout* arena, Ops* ops, int num_buffers,
                                                               std::vector<std::unique_ptr<RecordSource>> sources);
  ~RecordFetchers();

  // A fetch that a later step made stale is repeated for that step.
  void SetStep(uint64_t step);
  absl::Status Ask(ExpertId id);
  bool Here(ExpertId id);
  absl::StatusOr<std::span<const std::byte>> Wait(ExpertId id, Deadline deadline);
  void Release(ExpertId id);

 private:
  // A record that was asked for; guarded by mutex_, the bytes of its buffer excepted.
  struct Record {
    ExpertId id;
    std::byte* buffer = nullptr;
    RecordSource* coming = nullptr;  // that fetches it now
    bool done = false;
    bool released = false;
    absl::Status status;
  };
  struct FreeAligned {
    void operator()(std::byte* data) const { operator delete[](data, std::align_val_t{kRecordAlignment}); }
  };

  RecordFetchers(const ArenaLayout* arena, Ops* ops, int num_buffers, std::vector<std::unique_ptr<RecordSource>> sources);
  void Run(RecordSource& source);

  const ArenaLayout& arena_;
  Ops& ops_;
  const std::vector<std::unique_ptr<RecordSource>> sources_;
  const int64_t record_bytes_;
  const std::unique_ptr<std::byte[], FreeAligned> staging_;
  std::span<const std::byte> pinned_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  uint64_t step_ = 0;
  std::map<ExpertId, std::shared_ptr<Record>> records_;
  std::deque<std::shared_ptr<Record>> wanted_;  // in the order of asking
  std::deque<std::byte*> free_buffers_;
  std::vector<std::thread> threads_;
};

// An ExpertLink whose records are fetched.
class FetchingLink : public ExpertLink {
 public:
  absl::StatusOr<std::span<const std::byte>> RecordInPlace(ExpertId) const override {
    return FailedPrecondition("experts come over %s, and the coordinator's memory is not shared with this worker", name());
  }
  absl::Status AskRecord(uint64_t step, ExpertId id) override {
    if (fetchers_ == nullptr) return FailedPrecondition("this link was made without records");
    fetchers_->SetStep(step);
    return fetchers_->Ask(id);
  }
  bool RecordHere(ExpertId id) override { return fetchers_ == nullptr || fetchers_->Here(id); }
  absl::StatusOr<std::span<const std::byte>> WaitRecord(ExpertId id, Deadline deadline) override {
    if (fetchers_ == nullptr) return FailedPrecondition("this link was made without records");
    return fetchers_->Wait(id, deadline);
  }
  void ReleaseRecord(ExpertId id) override {
    if (fetchers_ != nullptr) fetchers_->Release(id);
  }

 protected:
  void SetStep(uint64_t step) {
    if (fetchers_ != nullptr) fetchers_->SetStep(step);
  }
  std::unique_ptr<RecordFetchers> fetchers_;  // null: without records
};

}  // namespace ferry
