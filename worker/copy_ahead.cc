#include "worker/copy_ahead.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "common/deadline.h"

namespace ferry {
namespace {

// Copies queued while rows are awaited: 3 ms of PCIe 5, since the engine's threads may keep this thread from its queue that long.
constexpr int64_t kMaxWhileWaiting = 12;

bool HasCopies(ExpertMode mode) {
  return mode == ExpertMode::kPlanned || mode == ExpertMode::kShipActivated || mode == ExpertMode::kShipAll;
}

}  // namespace

void CopyAhead::BeginStep(int64_t rows) {
  Plan(arena_.NextWithExperts(first_layer_, end_layer_), rows);
  waiting_ = {.rows = rows};
}

void CopyAhead::Plan(int64_t layer, int64_t rows, int helpers) {
  next_ = {};
  if (layer >= end_layer_) return;
  next_.layer = layer;
  switch (mode_of_(layer, rows)) {
    case ExpertMode::kHost:
    case ExpertMode::kInPlace:
    case ExpertMode::kResidentElseHost:
      break;
    case ExpertMode::kPlanned:
      next_.candidates = forecast_.For(layer, rows, forecast_.worth_tokens(rows));
      LeaveToHelpers(helpers);
      break;
    case ExpertMode::kShipActivated:
      next_.candidates = forecast_.For(layer, rows, 0);
      LeaveToHelpers(helpers);
      break;
    case ExpertMode::kShipAll:
      next_.candidates.experts.resize(num_experts_);
      std::iota(next_.candidates.experts.begin(), next_.candidates.experts.end(), 0);
      next_.candidates.num_certain = num_experts_;
      break;
  }
  // All certain experts are copied, so neighbours may go together, unless there are too few slots for all of them.
  if (cache_.JoinsRecordsOf(layer) && next_.candidates.num_certain <= cache_.num_slots()) {
    std::sort(next_.candidates.experts.begin(), next_.candidates.experts.begin() + next_.candidates.num_certain);
  }
}

// Of the certain experts that have no slot, this link's share stays: the most likely ones, which have the most tokens.
void CopyAhead::LeaveToHelpers(int helpers) {
  if (helpers == 0) return;
  std::vector<int32_t>& experts = next_.candidates.experts;
  experts.resize(next_.candidates.num_certain);
  const auto absent = [this](int32_t expert) { return !cache_.Contains({static_cast<int32_t>(next_.layer), expert}); };
  int64_t left = ShareBesideHelpers(std::count_if(experts.begin(), experts.end(), absent), helpers);
  std::erase_if(experts, [&](int32_t expert) { return absent(expert) && left-- <= 0; });
  next_.candidates.num_certain = static_cast<int64_t>(experts.size());
}

absl::Status CopyAhead::Start(Deadline deadline) {
  for (; next_.next < next_.candidates.experts.size(); ++next_.next) {
    const bool certain = static_cast<int64_t>(next_.next) < next_.candidates.num_certain;
    if (!certain && static_cast<int64_t>(next_.speculative.size()) >= forecast_.budget()) break;
    const int32_t expert = next_.candidates.experts[next_.next];
    const ExpertId id{static_cast<int32_t>(next_.layer), expert};
    const bool was_here = cache_.Contains(id);
    ASSIGN_OR_RETURN(const bool fetched, cache_.Fetch(id, ExpertCache::Purpose::kThisStep, deadline));
    if (!fetched) break;
    cache_.Pin(id);
    next_.pinned.push_back(expert);
    if (!certain && !was_here) next_.speculative.push_back(expert);
  }
  return cache_.StartReadyCopies();
}

void CopyAhead::EndLayer() {
  if (next_.layer < 0) return;
  const int32_t layer = static_cast<int32_t>(next_.layer);
  int64_t arrived = 0;
  for (const int32_t expert : next_.speculative) arrived += cache_.Arrived({layer, expert});
  forecast_.LearnGap(static_cast<int64_t>(next_.speculative.size()), arrived);
  for (const int32_t expert : next_.pinned) cache_.Unpin({layer, expert});
  next_ = {};
}

// First the certain experts that the last plan would have copied. Then the other certain ones, which the host would compute
// otherwise, and the likely ones: the link is idle anyway.
void CopyAhead::PlanWaiting() {
  waiting_.planned = true;
  const int64_t worth = forecast_.worth_tokens(waiting_.rows);
  for (const auto& [min_tokens, certain] : {std::pair(worth, true), std::pair(int64_t{0}, true), std::pair(int64_t{0}, false)}) {
    for (int64_t layer = first_layer_; layer < end_layer_; ++layer) {
      if (!arena_.HasExperts(layer)) continue;
      const ExpertMode mode = mode_of_(layer, waiting_.rows);
      if (!HasCopies(mode)) continue;
      ExpertForecast::Candidates candidates = forecast_.For(layer, waiting_.rows, min_tokens);
      if (certain) candidates.experts.resize(candidates.num_certain);
      for (const int32_t expert : candidates.experts) waiting_.candidates.push_back({static_cast<int32_t>(layer), expert});
    }
  }
}

absl::StatusOr<bool> CopyAhead::CopyWhileWaiting(Deadline deadline) {
  RETURN_IF_ERROR(cache_.StartReadyCopies());
  if (!waiting_.planned) PlanWaiting();
  for (; waiting_.next < waiting_.candidates.size(); ++waiting_.next) {
    if (cache_.num_coming() >= kMaxWhileWaiting) {
      RETURN_IF_ERROR(cache_.StartReadyCopies());
      return true;
    }
    const ExpertId id = waiting_.candidates[waiting_.next];
    if (cache_.Contains(id)) continue;
    // Not pinned: pinned slots of later layers would leave none to the first. An expert evicts only a colder one.
    const std::optional<double> victim_heat = cache_.HeatOfVictim();
    if (!victim_heat || cache_.Heat(id) <= *victim_heat) continue;
    if (waiting_.asked++ == 0) waiting_.since.Restart();
    RETURN_IF_ERROR(cache_.Fetch(id, ExpertCache::Purpose::kThisStep, deadline).status());
  }
  RETURN_IF_ERROR(cache_.StartReadyCopies());
  return cache_.num_coming() > 0;
}

absl::Duration CopyAhead::WaitingCopiesLeft() const {
  const int64_t arrived = waiting_.asked - cache_.num_coming();
  if (arrived < 1) return absl::InfiniteDuration();
  const int64_t room = std::max<int64_t>(0, cache_.num_slots() - waiting_.asked);  // by then all slots have this step's experts
  const auto left =
      cache_.num_coming() + std::min<int64_t>(room, static_cast<int64_t>(waiting_.candidates.size() - waiting_.next));
  return waiting_.since.Elapsed() * left / arrived;
}

void CopyAhead::Recover() {
  next_ = {};
  waiting_ = {};
}

}  // namespace ferry
