#pragma once

// Experts in device memory: a pool of slots, each big enough for any record of this worker's layers, filled from the expert
// link by copies that run beside the computation. The pool a pass streams its experts through and the cache that keeps the
// useful ones between passes are the same slots.
//
//   empty --Fetch--> asked --(the record is in host memory)--> filled     any but pinned or asked --eviction--> empty
//
// Records that lie side by side and are fetched one after the other into slots that do are copied at once, up to kJoinedBytes: a
// copy of 256 KiB has two thirds of the link's rate, one of 4 MiB 97 % (reference.md).
//
// A filled slot's bytes may still be on their way: Acquire makes the compute queue wait for them. A slot is reused only after
// the compute that last read it (its event goes into the copy). The slot that gives way is the one whose expert is the least
// likely to be wanted soon: the one with the least heat (below), among equals the one whose layer is farthest ahead, since
// layers come round in order.
//
// Heat is recency weighted with use: each step that uses an expert adds 1, and a step later everything is worth 2^(-1/64) of
// it. The step in progress does not count when slots are compared, or else the layers already done in this pass would look
// hotter than the ones still to come.
//
// Used by the compute thread alone.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "common/model/expert_layout.h"
#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/ops.h"
#include "worker/expert_link.h"

namespace ferry {

class ExpertCache {
 public:
  // For experts of layers [first_layer, end_layer). All that is borrowed must outlive this. ResourceExhausted: the device is
  // full.
  static absl::StatusOr<std::unique_ptr<ExpertCache>> Create(Ops* ops, ExpertLink* link, const ArenaLayout* arena,
                                                             int64_t first_layer, int64_t end_layer, int64_t num_slots);
  // How many slots fit into `bytes`, at most one for each expert.
  static int64_t SlotsIn(int64_t bytes, const ArenaLayout& arena, int64_t first_layer, int64_t end_layer);
  static int64_t SlotBytes(const ArenaLayout& arena, int64_t first_layer, int64_t end_layer);
  ~ExpertCache();  // waits for copies on their way

  // Copies records over slots for about `time`, between steps, and measures the whole way: a filled slot gets its own expert's
  // record again, an empty one that of any and stays empty. DeadlineExceeded: a record did not come, or a copy did not end.
  struct Probe {
    int64_t bytes = 0;
    double seconds = 0;
    double rate() const { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }
  };
  absl::StatusOr<Probe> ProbeLink(absl::Duration time, absl::Time deadline);
  // Device memory of the slots, whatever it holds.
  std::vector<const std::byte*> SlotMemory() const;

  // Brings experts into empty slots, in this order, and waits until they are there; `go_on` is called before each with how many
  // were asked for. Before the first step. Cancelled: `go_on` said false. ResourceExhausted: more experts than slots.
  // DeadlineExceeded: one did not come within `patience`.
  absl::Status Fill(std::span<const ExpertId> experts, absl::Duration patience, const std::function<bool(int64_t)>& go_on);

  int64_t num_slots() const { return static_cast<int64_t>(slots_.size()); }
  // Whether there is a slot for every expert of its layers.
  bool HoldsAll() const { return num_slots() >= (end_layer_ - first_layer_) * arena_.num_experts(); }
  int64_t slot_bytes() const { return slot_bytes_; }

  // A step begins: what is counted until its end goes into `counters`.
  void BeginStep(uint64_t step, v1::ExpertCounters* counters);
  void EndStep();
  // The layer that is computed now: distances to other layers are counted from it.
  void BeginLayer(int64_t layer) { current_layer_ = layer; }
  // The expert was activated in this step, wherever it is computed.
  void AddHeat(ExpertId id);
  double Heat(ExpertId id) const;  // this step included

  // Why a record is fetched, which decides how its first use is counted.
  enum class Purpose {
    kPass,  // for the pass in progress: shipped
    kKeep,  // in the background, for later ones: resident
  };

  // In a slot, or on its way into one.
  bool Contains(ExpertId id) const { return SlotOf(id) != nullptr; }
  static constexpr int64_t kJoinedBytes = int64_t{8} << 20;  // of one copy of several records
  // Whether records of a layer are so small that neighbours may be copied at once.
  bool JoinsRecordsOf(int64_t layer) const { return 2 * arena_.layer(layer).bytes <= kJoinedBytes; }
  // Wants the expert in a slot. False: all slots are pinned or asked for, nothing has changed; later then. True: it is there
  // or comes, in the order of calls; what may still be joined by its neighbour starts with the next Pump.
  absl::StatusOr<bool> Fetch(ExpertId id, Purpose purpose, absl::Time deadline);
  // The heat of what a fetch now would push out; -1 when a slot is empty, nullopt when none can be had.
  std::optional<double> HeatOfVictim() const;
  int64_t num_coming() const;  // fetched, not yet arrived

  // Keeps an expert in its slot until Release. It must be contained. Pins do not nest.
  void Pin(ExpertId id);
  bool Pinned(ExpertId id) const;
  // The record, for compute that is queued after this call: the compute queue waits for its arrival. Pinned before.
  absl::StatusOr<const std::byte*> Acquire(ExpertId id, absl::Time deadline);
  // Makes compute wait for nothing, but this thread until the record asked for first is being copied; its slot may then be
  // had. Internal: none was asked for.
  absl::Status WaitForRecord(absl::Time deadline);
  // Whether Acquire would make nobody wait.
  bool Arrived(ExpertId id);
  // The compute that reads the slot is queued; `used` passes when it is done. Unpins.
  void Release(ExpertId id, Event used);
  // Unpins without a use.
  void Unpin(ExpertId id);
  // After a failed step: unpins everything and gives up what was asked for and has not come.
  void Recover();

  // Empties all slots, between steps: what was asked for is given up, copies under way are waited for, so that the link stands
  // idle afterwards. Heat is kept. DeadlineExceeded: a copy did not end; slots are as they were.
  absl::Status Forget(absl::Time deadline);

  // Starts copies of records that have come into host memory, and gives back the host memory of copies that are done.
  absl::Status Pump();

 private:
  enum class State { kEmpty, kAsked, kFilled };
  struct Slot {
    State state = State::kEmpty;
    ExpertId id;
    std::byte* data = nullptr;
    Event arrived;  // kFilled; none once it is known to have passed
    Event used;     // the last compute that read it
    bool pinned = false;
    bool fresh = false;       // not used since it was fetched
    uint64_t fetched_in = 0;  // which step, in this cache's own count
    Purpose purpose = Purpose::kPass;
  };
  struct Warmth {
    double before = 0;      // before the last step that used it, as of that step
    uint64_t last_use = 0;  // in steps of this cache's own count; 0: never
  };
  struct Copy {
    ExpertId id;
    Event done;
  };

  ExpertCache(Ops* ops, ExpertLink* link, const ArenaLayout* arena, int64_t first_layer, int64_t end_layer)
      : ops_(*ops), link_(*link), arena_(*arena), first_layer_(first_layer), end_layer_(end_layer) {}

  Slot* SlotFor(ExpertId id);
  Slot* SlotOf(ExpertId id);
  const Slot* SlotOf(ExpertId id) const { return const_cast<ExpertCache*>(this)->SlotOf(id); }
  int64_t IndexOf(ExpertId id) const;
  const Slot* Victim() const;
  double HeatBeforeThisStep(ExpertId id) const;
  int64_t LayersAhead(int64_t layer) const;
  void Evict(Slot& slot);
  absl::Status StartCopy(absl::Time deadline);  // of the first expert in asked_, and of its neighbours behind it
  bool Continues(const Slot& slot, ExpertId id, const Slot& before, ExpertId id_before) const;
  void FinishCopies();
  absl::Status WaitForOldestCopy(absl::Time deadline);

  Ops& ops_;
  ExpertLink& link_;
  const ArenaLayout& arena_;
  const int64_t first_layer_, end_layer_;
  int64_t slot_bytes_ = 0;
  DeviceBuffer memory_;
  std::vector<Slot> slots_;
  std::vector<int32_t> slot_of_;  // by IndexOf; -1: in none
  std::vector<Warmth> warmth_;    // by IndexOf
  std::deque<ExpertId> asked_;    // in order
  std::deque<Copy> copying_;      // in order
  absl::Time copying_since_;      // while copying_ is not empty
  uint64_t step_ = 0;             // of the pipeline
  uint64_t steps_begun_ = 0;      // here; never goes back
  int64_t current_layer_ = 0;
  v1::ExpertCounters* counters_ = nullptr;
  v1::ExpertCounters no_counters_;
};

}  // namespace ferry
