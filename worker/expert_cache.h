#pragma once

// Experts in device memory: a pool of slots, each large enough for any record of this worker's layers. Copies that run beside
// the computation fill them from the expert link. The same slots serve two ends: a step streams experts through them, and they
// keep the most used experts between steps.
//
//   empty --Fetch--> asked --(the record is in host memory, its copy starts)--> filled
//   filled and not pinned --eviction--> empty
//
// One copy moves several records, up to kJoinedBytes, when they are neighbours in the arena, were fetched one after the other,
// and go into neighbouring slots. A copy of 256 KiB reaches two thirds of the link's rate, a copy of 4 MiB 97 %.
//
// A filled slot's copy may still be running: Acquire makes the compute queue wait for it. A copy into a slot waits for the last
// compute that read the slot. Eviction takes the slot whose expert has the least heat; among equals, the one whose layer comes
// last, counted from the layer in progress.
//
// Heat measures recent use: each step that uses an expert adds 1, and every step multiplies all heat by 2^(-1/64). Eviction
// ignores uses by the step in progress; otherwise layers that it has computed would win over layers to come.
//
// Only the compute thread uses it.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/ops.h"
#include "worker/expert_link.h"

namespace ferry {

class ExpertCache {
 public:
  // For experts of layers [first_layer, end_layer). ops, link and arena outlive the cache. ResourceExhausted: the device is full.
  static absl::StatusOr<std::unique_ptr<ExpertCache>> Create(Ops* ops, ExpertLink* link, const ArenaLayout* arena,
                                                             int64_t first_layer, int64_t end_layer, int64_t num_slots);
  // How many slots fit into `bytes`, at most one for each expert.
  static int64_t SlotsIn(int64_t bytes, const ArenaLayout& arena, int64_t first_layer, int64_t end_layer);
  // Device memory of one slot.
  static int64_t SlotBytes(const ArenaLayout& arena, int64_t first_layer, int64_t end_layer);
  ~ExpertCache();  // waits for running copies

  // Between steps: copies records into slots for about `time` and measures the rate from host memory to device. A filled slot
  // gets its own expert's record again; an empty slot gets some record and stays empty. DeadlineExceeded: a record did not
  // arrive, or a copy did not end.
  struct Measurement {
    int64_t bytes = 0;
    double seconds = 0;
    double rate() const { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }
  };
  absl::StatusOr<Measurement> MeasureLink(absl::Duration time, Deadline deadline);
  // The device memory of every slot, empty or filled.
  std::vector<const std::byte*> SlotMemory() const;

  // Before the first step: copies experts into empty slots, in this order, and waits until all have arrived. Calls `go_on` before
  // each with the number asked for so far. Cancelled: `go_on` returned false. ResourceExhausted: more experts than slots.
  // DeadlineExceeded: a record did not arrive within `patience`.
  absl::Status Fill(std::span<const ExpertId> experts, absl::Duration patience, const std::function<bool(int64_t)>& go_on);

  int64_t num_slots() const { return static_cast<int64_t>(slots_.size()); }
  // Whether there is a slot for every expert of its layers.
  bool HoldsAll() const { return num_slots() >= arena_.num_records(first_layer_, end_layer_); }
  int64_t slot_bytes() const { return slot_bytes_; }

  // A step begins. Traffic until EndStep is counted in `counters`, which is borrowed until then.
  void BeginStep(uint64_t step, v1::ExpertCounters* counters);
  void EndStep();
  // The layer in progress is `layer`; eviction counts the distance to other layers from it.
  void BeginLayer(int64_t layer) { current_layer_ = layer; }
  // The router chose this expert in this step, wherever it is computed.
  void AddHeat(ExpertId id);
  double Heat(ExpertId id) const;  // including this step

  // Why a record is fetched. The counters take its first use from this.
  enum class Purpose {
    kThisStep,    // needed by the step in progress: its first use counts as shipped
    kLaterSteps,  // copied in the background: its first use counts as resident
  };

  // Whether the expert has a slot, filled or asked for.
  bool Contains(ExpertId id) const { return SlotOf(id) != nullptr; }
  static constexpr int64_t kJoinedBytes = int64_t{8} << 20;  // at most, of one copy of several records
  // Whether records of a layer are small enough for one copy to move two.
  bool JoinsRecordsOf(int64_t layer) const { return 2 * arena_.layer(layer).bytes <= kJoinedBytes; }
  // Asks for the expert's record unless a slot has it. Records arrive in the order of calls. False: every slot is pinned or
  // asked for, and nothing has changed; the caller tries again later. A copy that could be joined with the next
  // Fetch is delayed until StartReadyCopies.
  absl::StatusOr<bool> Fetch(ExpertId id, Purpose purpose, Deadline deadline);
  // The heat of the expert that a fetch now would evict; -1 when a slot is empty, nullopt when no slot is available.
  std::optional<double> HeatOfVictim() const;
  int64_t num_coming() const;  // records fetched but not arrived

  // Keeps a contained expert in its slot until Release or Unpin. Pins do not nest.
  void Pin(ExpertId id);
  // The record of a pinned expert in device memory. Compute queued after this call waits for its arrival.
  absl::StatusOr<const std::byte*> Acquire(ExpertId id, Deadline deadline);
  // Blocks this thread, not the compute queue, until the oldest requested record starts copying. Its slot can then be reused.
  // Internal: no record was requested.
  absl::Status WaitForRecord(Deadline deadline);
  // Whether the record is in its slot, so that Acquire makes compute wait for nothing.
  bool Arrived(ExpertId id);
  // Unpins after the compute that reads the slot was queued; `used` passes when that compute is done.
  void Release(ExpertId id, Event used);
  // Unpins without having used the record.
  void Unpin(ExpertId id);
  // After a failed step: unpins every slot and gives up records that were asked for and have not arrived.
  void Recover();

  // Between steps: empties all slots. Gives up records asked for and waits for running copies, so that the link is idle
  // afterwards. Heat is kept. DeadlineExceeded: a copy did not end, and the slots are unchanged.
  absl::Status Forget(Deadline deadline);

  // Starts copies of records that have arrived in host memory, and returns the host memory of finished copies to the link.
  absl::Status StartReadyCopies();

 private:
  enum class State { kEmpty, kAsked, kFilled };
  struct Slot {
    State state = State::kEmpty;
    ExpertId id;
    std::byte* data = nullptr;
    Event arrived;  // of the copy, when kFilled; reset once it has passed
    Event used;     // of the last compute that read the slot
    bool pinned = false;
    bool fresh = false;       // not used since it was fetched
    uint64_t fetched_in = 0;  // the value of steps_begun_ at the fetch
    Purpose purpose = Purpose::kThisStep;
  };
  struct Warmth {
    double before = 0;      // heat just before the last step that used it
    uint64_t last_use = 0;  // the value of steps_begun_ then; 0: never used
  };
  struct Copy {
    ExpertId id;
    Event done;
  };

  class LinkRun;  // of MeasureLink

  ExpertCache(Ops* ops, ExpertLink* link, const ArenaLayout* arena, int64_t first_layer, int64_t end_layer)
      : ops_(*ops), link_(*link), arena_(*arena), first_layer_(first_layer), end_layer_(end_layer) {}

  Slot* SlotFor(ExpertId id);
  Slot* SlotOf(ExpertId id);
  const Slot* SlotOf(ExpertId id) const { return const_cast<ExpertCache*>(this)->SlotOf(id); }
  int64_t IndexOf(ExpertId id) const;
  ExpertId IdAt(int64_t record) const;  // of the records of its layers, in order
  const Slot* Victim() const;
  double HeatBeforeThisStep(ExpertId id) const;
  int64_t LayersAhead(int64_t layer) const;
  void Evict(Slot& slot);
  absl::Status StartCopy(Deadline deadline);  // copies the first expert in asked_ and the neighbours behind it
  bool Continues(const Slot& slot, ExpertId id, const Slot& before, ExpertId id_before) const;
  void FinishCopies();
  absl::Status WaitForOldestCopy(Deadline deadline);

  Ops& ops_;
  ExpertLink& link_;
  const ArenaLayout& arena_;
  const int64_t first_layer_, end_layer_;
  int64_t slot_bytes_ = 0;
  DeviceBuffer memory_;
  std::vector<Slot> slots_;
  std::vector<int32_t> slot_of_;  // by IndexOf; -1: no slot
  std::vector<Warmth> warmth_;    // by IndexOf
  std::deque<ExpertId> asked_;    // in order of arrival
  std::deque<Copy> copying_;      // in order of the copy queue
  Stopwatch copying_since_;       // valid while copying_ is not empty
  uint64_t step_ = 0;             // the pipeline's number of the step in progress
  uint64_t steps_begun_ = 0;      // this cache's own count; never decreases
  int64_t current_layer_ = 0;
  v1::ExpertCounters* counters_ = nullptr;
  v1::ExpertCounters no_counters_;
};

}  // namespace ferry
