#include "worker/expert_cache.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/deadline.h"
#include "common/log.h"

namespace ferry {
namespace {

constexpr double kHalfLifeSteps = 64;
constexpr int64_t kFillAhead = 8;  // bounds what a remote link has to hold, not the copy queue

double Decay(uint64_t steps) { return std::exp2(-static_cast<double>(steps) / kHalfLifeSteps); }

}  // namespace

int64_t ExpertCache::SlotBytes(const ArenaLayout& arena, int64_t first_layer, int64_t end_layer) {
  int64_t bytes = 0;
  for (int64_t layer = first_layer; layer < end_layer; ++layer) bytes = std::max(bytes, arena.layer(layer).bytes);
  return bytes;
}

int64_t ExpertCache::SlotsIn(int64_t bytes, const ArenaLayout& arena, int64_t first_layer, int64_t end_layer) {
  const int64_t num_records = arena.num_records(first_layer, end_layer);
  if (num_records == 0) return 0;
  return std::min(std::max<int64_t>(bytes, 0) / SlotBytes(arena, first_layer, end_layer), num_records);
}

absl::StatusOr<std::unique_ptr<ExpertCache>> ExpertCache::Create(Ops* ops, ExpertLink* link, const ArenaLayout* arena,
                                                                 int64_t first_layer, int64_t end_layer, int64_t num_slots) {
  if (num_slots < 1) return InvalidArgument("num_slots is %d, want at least 1", num_slots);
  std::unique_ptr<ExpertCache> cache(new ExpertCache(ops, link, arena, first_layer, end_layer));
  cache->slot_bytes_ = SlotBytes(*arena, first_layer, end_layer);
  ASSIGN_OR_RETURN(cache->memory_, ops->Allocate(num_slots * cache->slot_bytes_));
  ops->Populate(cache->memory_);  // else the first copy into each slot, and MeasureLink, would take twice the time on a host
  cache->slots_.resize(num_slots);
  for (int64_t i = 0; i < num_slots; ++i) cache->slots_[i].data = cache->memory_.data() + i * cache->slot_bytes_;
  const int64_t num_ids = (end_layer - first_layer) * arena->num_experts();  // those of layers without experts are never used
  cache->slot_of_.assign(num_ids, -1);
  cache->warmth_.resize(num_ids);
  cache->counters_ = &cache->no_counters_;
  cache->current_layer_ = first_layer;
  return cache;
}

ExpertCache::~ExpertCache() {
  Recover();
  for (const Copy& copy : copying_) {
    if (const absl::Status done = ops_.Wait(copy.done, Deadline::In(absl::Seconds(10))); !done.ok()) {
      spdlog::error("a copy into an expert slot did not end: {}", done.ToString());
    }
    link_.ReleaseRecord(copy.id);
  }
}

std::vector<const std::byte*> ExpertCache::SlotMemory() const {
  std::vector<const std::byte*> memory;
  for (const Slot& slot : slots_) memory.push_back(slot.data);
  return memory;
}

absl::Status ExpertCache::Fill(std::span<const ExpertId> experts, absl::Duration patience,
                               const std::function<bool(int64_t)>& go_on) {
  if (static_cast<int64_t>(experts.size()) > num_slots()) {
    return ResourceExhausted("%d experts do not fit into %d slots", experts.size(), num_slots());
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    if (!go_on(static_cast<int64_t>(i))) return Cancelled("the slots are not all filled");
    const Deadline deadline = Deadline::In(patience);
    RETURN_IF_ERROR(Fetch(experts[i], Purpose::kLaterSteps, deadline).status());
    while (num_coming() > kFillAhead) RETURN_IF_ERROR(asked_.empty() ? WaitForOldestCopy(deadline) : WaitForRecord(deadline));
  }
  while (num_coming() > 0) {
    const Deadline deadline = Deadline::In(patience);
    RETURN_IF_ERROR(asked_.empty() ? WaitForOldestCopy(deadline) : WaitForRecord(deadline));
  }
  no_counters_.Clear();
  return absl::OkStatus();
}

void ExpertCache::BeginStep(uint64_t step, v1::ExpertCounters* counters) {
  step_ = step;
  ++steps_begun_;
  counters_ = counters != nullptr ? counters : &no_counters_;
}

void ExpertCache::EndStep() {
  FinishCopies();
  counters_ = &no_counters_;
}

// ------------------------------------------------------------------------------------------------------------------- heat

void ExpertCache::AddHeat(ExpertId id) {
  Warmth& warmth = warmth_[IndexOf(id)];
  if (warmth.last_use == steps_begun_) return;
  warmth.before = HeatBeforeThisStep(id);
  warmth.last_use = steps_begun_;
}

double ExpertCache::HeatBeforeThisStep(ExpertId id) const {
  const Warmth& warmth = warmth_[IndexOf(id)];
  if (warmth.last_use == 0) return 0;
  if (warmth.last_use == steps_begun_) return warmth.before;
  return (warmth.before + 1) * Decay(steps_begun_ - warmth.last_use);
}

double ExpertCache::Heat(ExpertId id) const {
  const bool used_now = warmth_[IndexOf(id)].last_use == steps_begun_ && steps_begun_ > 0;
  return HeatBeforeThisStep(id) + (used_now ? 1 : 0);
}

// ------------------------------------------------------------------------------------------------------------------ slots

ExpertId ExpertCache::IdAt(int64_t record) const {
  int64_t layer = arena_.NextWithExperts(first_layer_, end_layer_);
  for (; record >= arena_.num_experts(); record -= arena_.num_experts()) layer = arena_.NextWithExperts(layer + 1, end_layer_);
  return {static_cast<int32_t>(layer), static_cast<int32_t>(record)};
}

int64_t ExpertCache::IndexOf(ExpertId id) const { return (id.layer - first_layer_) * arena_.num_experts() + id.expert; }

ExpertCache::Slot* ExpertCache::SlotOf(ExpertId id) {
  const int32_t slot = slot_of_[IndexOf(id)];
  return slot < 0 ? nullptr : &slots_[slot];
}

int64_t ExpertCache::LayersAhead(int64_t layer) const {
  const int64_t ahead = layer - current_layer_;
  return ahead >= 0 ? ahead : ahead + (end_layer_ - first_layer_);
}

const ExpertCache::Slot* ExpertCache::Victim() const {
  const Slot* victim = nullptr;
  double victim_heat = 0;
  for (const Slot& slot : slots_) {
    if (slot.state == State::kEmpty) return &slot;
    if (slot.pinned || slot.state == State::kAsked) continue;
    const double heat = HeatBeforeThisStep(slot.id);
    if (victim == nullptr || heat < victim_heat ||
        (heat == victim_heat && LayersAhead(slot.id.layer) > LayersAhead(victim->id.layer))) {
      victim = &slot;
      victim_heat = heat;
    }
  }
  return victim;
}

std::optional<double> ExpertCache::HeatOfVictim() const {
  const Slot* const victim = Victim();
  if (victim == nullptr) return std::nullopt;
  return victim->state == State::kEmpty ? -1 : Heat(victim->id);
}

void ExpertCache::Evict(Slot& slot) {
  if (slot.fresh) counters_->set_shipped_unused(counters_->shipped_unused() + 1);
  slot_of_[IndexOf(slot.id)] = -1;
  slot.state = State::kEmpty;
  slot.fresh = false;
  slot.pinned = false;
}

absl::StatusOr<bool> ExpertCache::Fetch(ExpertId id, Purpose purpose, Deadline deadline) {
  if (Contains(id)) return true;
  Slot* slot = SlotFor(id);
  if (slot == nullptr && !asked_.empty()) {  // what waits for a neighbour holds its slot
    RETURN_IF_ERROR(StartReadyCopies());
    slot = SlotFor(id);
  }
  if (slot == nullptr) return false;
  // The same record may still be on its way into a slot that has been given to another expert: that copy first gives it back.
  for (size_t i = 0; i < copying_.size(); ++i) {
    if (copying_[i].id == id) {
      RETURN_IF_ERROR(ops_.Wait(copying_[i].done, deadline));
      FinishCopies();
      break;
    }
  }
  if (!asked_.empty() && !Continues(*slot, id, *SlotOf(asked_.back()), asked_.back())) RETURN_IF_ERROR(StartReadyCopies());
  RETURN_IF_ERROR(link_.AskRecord(step_, id));
  if (slot->state != State::kEmpty) Evict(*slot);
  slot->state = State::kAsked;
  slot->id = id;
  slot->fresh = true;
  slot->fetched_in = steps_begun_;
  slot->purpose = purpose;
  slot_of_[IndexOf(id)] = static_cast<int32_t>(slot - slots_.data());
  asked_.push_back(id);
  if (!JoinsRecordsOf(id.layer)) RETURN_IF_ERROR(StartReadyCopies());
  return true;
}

// The victim's; behind the neighbour that was asked for last, if that one's expert is no hotter.
ExpertCache::Slot* ExpertCache::SlotFor(ExpertId id) {
  Slot* const victim = const_cast<Slot*>(Victim());
  if (victim == nullptr || asked_.empty() || !JoinsRecordsOf(id.layer)) return victim;
  Slot* const behind = SlotOf(asked_.back()) + 1;
  if (behind == slots_.data() + slots_.size() || !Continues(*behind, id, *(behind - 1), asked_.back())) return victim;
  if (behind->state == State::kEmpty) return behind;
  const bool may_give_way = behind->state == State::kFilled && !behind->pinned && victim->state != State::kEmpty &&
                            HeatBeforeThisStep(behind->id) <= HeatBeforeThisStep(victim->id);
  return may_give_way ? behind : victim;
}

// Whether one copy can hold the record of `id` for `slot` behind that of `id_before` for `before`.
bool ExpertCache::Continues(const Slot& slot, ExpertId id, const Slot& before, ExpertId id_before) const {
  return id.layer == id_before.layer && id.expert == id_before.expert + 1 &&
         slot.data == before.data + arena_.layer(id.layer).bytes;
}

int64_t ExpertCache::num_coming() const { return static_cast<int64_t>(asked_.size() + copying_.size()); }

// ----------------------------------------------------------------------------------------------------------------- copies

absl::Status ExpertCache::StartReadyCopies() {
  FinishCopies();
  while (!asked_.empty() && link_.RecordHere(asked_.front())) RETURN_IF_ERROR(StartCopy(Deadline::Never()));
  return absl::OkStatus();
}

absl::Status ExpertCache::StartCopy(Deadline deadline) {
  const ExpertId first = asked_.front();
  Slot& slot = *SlotOf(first);
  size_t joined = 1;
  int64_t bytes = 0;
  const auto start = [&]() -> absl::StatusOr<Event> {
    ASSIGN_OR_RETURN(std::span<const std::byte> records, link_.WaitRecord(first, deadline));
    std::vector<Event> after = {slot.used};
    for (; joined < asked_.size(); ++joined) {
      const ExpertId id = asked_[joined];
      if (!Continues(*SlotOf(id), id, *SlotOf(asked_[joined - 1]), asked_[joined - 1])) break;
      if (static_cast<int64_t>(records.size()) + arena_.layer(id.layer).bytes > kJoinedBytes || !link_.RecordHere(id)) break;
      const absl::StatusOr<std::span<const std::byte>> next = link_.WaitRecord(id, deadline);
      // One that came to lie elsewhere, or not at all, is looked at when it is the first.
      if (!next.ok() || next->data() != records.data() + records.size()) break;
      records = {records.data(), records.size() + next->size()};
      after.push_back(SlotOf(id)->used);
    }
    bytes = static_cast<int64_t>(records.size());
    return ops_.CopyAsync(slot.data, records, after);
  };
  const absl::StatusOr<Event> arrived = start();
  if (!arrived.ok()) {
    if (arrived.status().code() != absl::StatusCode::kDeadlineExceeded) {  // otherwise it may still come
      asked_.pop_front();
      link_.ReleaseRecord(first);
      slot.fresh = false;
      Evict(slot);
    }
    return arrived.status();
  }
  if (copying_.empty()) copying_since_.Restart();
  for (size_t i = 0; i < joined; ++i) {
    const ExpertId id = asked_.front();
    asked_.pop_front();
    Slot& filled = *SlotOf(id);
    filled.state = State::kFilled;
    filled.arrived = *arrived;
    filled.used = nullptr;
    copying_.push_back({id, *arrived});
  }
  counters_->set_copies(counters_->copies() + 1);
  counters_->set_bytes_shipped(counters_->bytes_shipped() + static_cast<uint64_t>(bytes));
  return absl::OkStatus();
}

void ExpertCache::FinishCopies() {
  const bool was_busy = !copying_.empty();
  while (!copying_.empty() && ops_.Passed(copying_.front().done)) {
    link_.ReleaseRecord(copying_.front().id);
    copying_.pop_front();
  }
  if (!was_busy) return;
  counters_->set_copy_busy_seconds(counters_->copy_busy_seconds() + absl::ToDoubleSeconds(copying_since_.Restart()));
}

absl::Status ExpertCache::WaitForOldestCopy(Deadline deadline) {
  RETURN_IF_ERROR(ops_.Wait(copying_.front().done, deadline));
  FinishCopies();
  return absl::OkStatus();
}

absl::StatusOr<const std::byte*> ExpertCache::Acquire(ExpertId id, Deadline deadline) {
  Slot* slot = SlotOf(id);
  if (slot == nullptr || !slot->pinned) return Internal("expert %d of layer %d is not pinned", id.expert, id.layer);
  const Stopwatch waiting;
  // Records are copied in the order in which they were asked for.
  while (slot->state == State::kAsked) {
    RETURN_IF_ERROR(WaitForRecord(deadline));
    slot = SlotOf(id);
    if (slot == nullptr) return Internal("expert %d of layer %d was given up", id.expert, id.layer);
  }
  RETURN_IF_ERROR(ops_.ComputeAfter(slot->arrived));
  counters_->set_copy_wait_seconds(counters_->copy_wait_seconds() + waiting.Seconds());
  // One that an earlier step copied in vain was here when this one began.
  if (slot->fresh && slot->purpose == Purpose::kThisStep && slot->fetched_in == steps_begun_) {
    counters_->set_shipped(counters_->shipped() + 1);
  } else {
    counters_->set_resident(counters_->resident() + 1);
  }
  slot->fresh = false;
  return slot->data;
}

bool ExpertCache::Arrived(ExpertId id) {
  Slot* const slot = SlotOf(id);
  if (slot == nullptr || slot->state != State::kFilled || !ops_.Passed(slot->arrived)) return false;
  slot->arrived = nullptr;  // asking the device again would cost a microsecond, for every resident expert of every layer
  return true;
}

void ExpertCache::Pin(ExpertId id) {
  if (Slot* const slot = SlotOf(id)) slot->pinned = true;
}

void ExpertCache::Release(ExpertId id, Event used) {
  Slot* const slot = SlotOf(id);
  if (slot == nullptr) return;
  slot->pinned = false;
  slot->used = std::move(used);
}

void ExpertCache::Unpin(ExpertId id) {
  if (Slot* const slot = SlotOf(id)) slot->pinned = false;
}

absl::Status ExpertCache::WaitForRecord(Deadline deadline) {
  if (asked_.empty()) return Internal("no expert is on its way");
  // The record may wait for the host memory of copies that still run.
  if (!link_.RecordHere(asked_.front()) && !copying_.empty()) {
    RETURN_IF_ERROR(WaitForOldestCopy(deadline));
  }
  return StartCopy(deadline);
}

absl::Status ExpertCache::Forget(Deadline deadline) {
  while (!copying_.empty()) RETURN_IF_ERROR(WaitForOldestCopy(deadline));
  Recover();
  for (Slot& slot : slots_) {
    if (slot.state == State::kFilled) Evict(slot);
  }
  return absl::OkStatus();
}

void ExpertCache::Recover() {
  // Compute that was queued before the failure may still read pinned slots.
  const absl::StatusOr<Event> queued = ops_.MarkCompute();
  for (Slot& slot : slots_) {
    if (slot.pinned && queued.ok()) slot.used = *queued;
    slot.pinned = false;
  }
  for (const ExpertId id : asked_) {
    link_.ReleaseRecord(id);
    Evict(*SlotOf(id));
  }
  asked_.clear();
}

}  // namespace ferry
