// ExpertCache::MeasureLink: how fast records come from the expert link into slots.

#include <algorithm>
#include <deque>
#include <utility>

#include "common/deadline.h"
#include "worker/expert_cache.h"

namespace ferry {
namespace {

constexpr size_t kAheadOfOne = 2;  // records asked for, and copies queued, while one runs

}  // namespace

// Records on their way, in two queues: asked for from the link, and being copied into slots.
class ExpertCache::LinkRun {
 public:
  LinkRun(ExpertCache* cache, Deadline deadline) : cache_(*cache), deadline_(deadline) {}
  // Gives back the records that were asked for. After an error a copy may still read its record: the cache waits for it later.
  ~LinkRun() {
    for (const Record& record : asked_) cache_.link_.ReleaseRecord(record.id);
    for (Record& record : copying_) cache_.copying_.push_back({record.id, std::move(record.done)});
  }

  // Copies the next record; its bytes. 0: so few experts that all of them are being copied, and one copy was waited for instead.
  absl::StatusOr<int64_t> CopyOne() {
    RETURN_IF_ERROR(AskAhead());
    if (asked_.empty()) {
      RETURN_IF_ERROR(FinishFirst());
      return 0;
    }
    Record next = asked_.front();
    // The link may need the host memory of running copies.
    while (!cache_.link_.RecordHere(next.id) && !copying_.empty()) RETURN_IF_ERROR(FinishFirst());
    ASSIGN_OR_RETURN(const std::span<const std::byte> record, cache_.link_.WaitRecord(next.id, deadline_));
    Slot& slot = *next.slot;
    const size_t num_events = slot.used == nullptr ? 0 : 1;
    ASSIGN_OR_RETURN(next.done, cache_.ops_.CopyAsync(slot.data, record, {&slot.used, num_events}));
    if (slot.state == State::kFilled) slot.arrived = next.done;
    slot.used = nullptr;
    copying_.push_back(next);
    asked_.pop_front();
    return static_cast<int64_t>(record.size());
  }
  // Waits until at most `count` copies run.
  absl::Status FinishTo(size_t count) {
    while (copying_.size() > count) RETURN_IF_ERROR(FinishFirst());
    return absl::OkStatus();
  }

 private:
  struct Record {
    ExpertId id;
    Slot* slot = nullptr;
    Event done;
  };

  absl::Status AskAhead() {
    const int64_t num_records = cache_.arena_.num_records(cache_.first_layer_, cache_.end_layer_);
    for (; asked_.size() < kAheadOfOne; ++next_) {
      Slot& slot = cache_.slots_[next_ % cache_.num_slots()];
      const ExpertId id = slot.state == State::kFilled ? slot.id : cache_.IdAt(next_ % num_records);
      if (IsOnItsWay(id)) break;
      RETURN_IF_ERROR(cache_.link_.AskRecord(cache_.step_, id));
      asked_.push_back({.id = id, .slot = &slot, .done = nullptr});
    }
    return absl::OkStatus();
  }
  bool IsOnItsWay(ExpertId id) const {
    const auto same = [&](const Record& record) { return record.id == id; };
    return std::any_of(asked_.begin(), asked_.end(), same) || std::any_of(copying_.begin(), copying_.end(), same);
  }
  absl::Status FinishFirst() {
    RETURN_IF_ERROR(cache_.ops_.Wait(copying_.front().done, deadline_));
    cache_.link_.ReleaseRecord(copying_.front().id);
    copying_.pop_front();
    return absl::OkStatus();
  }

  ExpertCache& cache_;
  const Deadline deadline_;
  std::deque<Record> asked_, copying_;
  int64_t next_ = 0;  // which slot, and for an empty slot which expert, comes next
};

absl::StatusOr<ExpertCache::Measurement> ExpertCache::MeasureLink(absl::Duration time, Deadline deadline) {
  while (!asked_.empty()) RETURN_IF_ERROR(WaitForRecord(deadline));
  while (!copying_.empty()) RETURN_IF_ERROR(WaitForOldestCopy(deadline));
  no_counters_.Clear();

  LinkRun run(this, deadline);
  // The first copy is not timed: it warms up the path between here and the coordinator.
  RETURN_IF_ERROR(run.CopyOne().status());
  RETURN_IF_ERROR(run.FinishTo(0));
  Measurement measured;
  const Stopwatch measuring;
  while (measured.bytes == 0 || measuring.Elapsed() < time) {
    ASSIGN_OR_RETURN(const int64_t bytes, run.CopyOne());
    measured.bytes += bytes;
    RETURN_IF_ERROR(run.FinishTo(kAheadOfOne));
  }
  RETURN_IF_ERROR(run.FinishTo(0));
  measured.seconds = measuring.Seconds();
  return measured;
}

}  // namespace ferry
