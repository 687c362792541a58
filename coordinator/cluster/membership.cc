#include "coordinator/cluster/membership.h"

#include <algorithm>

namespace ferry {

const char* NameOf(MemberState state) {
  switch (state) {
    case MemberState::kStarting:
      return "starting";
    case MemberState::kLoading:
      return "loading";
    case MemberState::kReady:
      return "ready";
    case MemberState::kLost:
      return "lost";
  }
  return "unknown";
}

Membership::Membership(const MembershipOptions& options, const Clock* clock) : options_(options), clock_(*clock) {
  for (int i = 0; i < options.num_workers; ++i) members_.push_back({.id = WorkerId(i)});
}

absl::StatusOr<WorkerId> Membership::Register(const MemberInfo& info, std::optional<WorkerId> wanted) {
  if (info.incarnation == Incarnation()) return InvalidArgument("incarnation is 0, want a random number");
  if (wanted && (wanted->value() < 0 || wanted->value() >= options_.num_workers)) {
    return InvalidArgument("wanted_worker_id is %d, want 0 to %d", wanted->value(), options_.num_workers - 1);
  }
  const std::lock_guard lock(mutex_);
  Member* place = nullptr;
  for (Member& member : members_) {
    if (member.info.incarnation != info.incarnation) continue;
    if (member.state == MemberState::kLost) {
      return Aborted("incarnation %d of worker %d was lost (%s): start again with another", info.incarnation.value(),
                     member.id.value(), member.lost_because);
    }
    return Aborted("incarnation %d is worker %d already: start again with another", info.incarnation.value(), member.id.value());
  }
  if (wanted) {
    place = &members_[wanted->value()];
  } else {
    for (const MemberState state : {MemberState::kStarting, MemberState::kLost}) {
      const auto found = std::find_if(members_.begin(), members_.end(), [&](const Member& m) { return m.state == state; });
      if (place == nullptr && found != members_.end()) place = &*found;
    }
  }
  if (place == nullptr) {
    return FailedPrecondition("the cluster has its %d workers already; a place is free again when one of them is lost",
                              options_.num_workers);
  }
  if (place->state == MemberState::kLoading || place->state == MemberState::kReady) {
    return Unavailable("worker %d is still there: its place is free once it is lost", place->id.value());
  }
  RETURN_IF_ERROR(CheckNeighboursLocked(place->id, info));
  *place = {.id = place->id, .state = MemberState::kLoading, .info = info, .last_heard = clock_.Now()};
  return place->id;
}

// Hidden states go from each place to the next.
absl::Status Membership::CheckNeighboursLocked(WorkerId place, const MemberInfo& info) const {
  const auto taken = [&](int32_t id) {
    return id >= 0 && id < options_.num_workers &&
           (members_[id].state == MemberState::kLoading || members_[id].state == MemberState::kReady);
  };
  const int32_t before = place.value() - 1, after = place.value() + 1;
  if (info.loopback && taken(before) && members_[before].info.machine != info.machine) {
    return InvalidArgument("address is %s, which worker %d on another host has to reach: start this one with --listen ADDRESS",
                           info.address, before);
  }
  if (taken(after) && members_[after].info.loopback && members_[after].info.machine != info.machine) {
    return InvalidArgument("worker %d listens on %s, which this host has to reach: start that one with --listen ADDRESS", after,
                           members_[after].info.address);
  }
  return absl::OkStatus();
}

absl::Status Membership::RecordHeartbeat(WorkerId worker, Incarnation incarnation, bool ready) {
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(worker, incarnation));
  Member& member = members_[worker.value()];
  member.last_heard = clock_.Now();
  if (ready) member.state = MemberState::kReady;
  return absl::OkStatus();
}

absl::Status Membership::Check(WorkerId worker, Incarnation incarnation) const {
  const std::lock_guard lock(mutex_);
  return CheckLocked(worker, incarnation);
}

absl::Status Membership::CheckLocked(WorkerId worker, Incarnation incarnation) const {
  if (worker.value() < 0 || worker.value() >= options_.num_workers) {
    return InvalidArgument("worker_id is %d, want 0 to %d", worker.value(), options_.num_workers - 1);
  }
  const Member& member = members_[worker.value()];
  if (member.info.incarnation != incarnation || member.state == MemberState::kStarting) {
    return Aborted("incarnation %d is not worker %d", incarnation.value(), worker.value());
  }
  if (member.state == MemberState::kLost) {
    return Aborted("incarnation %d of worker %d was lost: %s", incarnation.value(), worker.value(), member.lost_because);
  }
  return absl::OkStatus();
}

std::vector<Member> Membership::ExpireHeartbeats() {
  const std::lock_guard lock(mutex_);
  const absl::Time now = clock_.Now();
  std::vector<Member> lost;
  for (Member& member : members_) {
    if (member.state != MemberState::kLoading && member.state != MemberState::kReady) continue;
    if (now - member.last_heard <= options_.heartbeat_timeout) continue;
    LoseLocked(member, absl::StrFormat("not heard of for %.1f s", absl::ToDoubleSeconds(now - member.last_heard)));
    lost.push_back(member);
  }
  return lost;
}

bool Membership::MarkLost(WorkerId worker, Incarnation incarnation, const std::string& because) {
  const std::lock_guard lock(mutex_);
  if (!CheckLocked(worker, incarnation).ok()) return false;
  LoseLocked(members_[worker.value()], because);
  return true;
}

void Membership::LoseLocked(Member& member, const std::string& because) {
  member.state = MemberState::kLost;
  member.lost_because = because;
  epoch_lasts_ = false;
}

absl::StatusOr<uint64_t> Membership::BeginEpoch() {
  if (!AllReady()) return FailedPrecondition("not all workers are ready: %s", Describe());
  const std::lock_guard lock(mutex_);
  epoch_lasts_ = true;
  return ++last_epoch_;
}

void Membership::EndEpoch() {
  const std::lock_guard lock(mutex_);
  epoch_lasts_ = false;
}

uint64_t Membership::epoch() const {
  const std::lock_guard lock(mutex_);
  return epoch_lasts_ ? last_epoch_ : 0;
}

bool Membership::AllReady() const {
  const std::lock_guard lock(mutex_);
  return std::all_of(members_.begin(), members_.end(), [](const Member& m) { return m.state == MemberState::kReady; });
}

std::vector<Member> Membership::Members() const {
  const std::lock_guard lock(mutex_);
  return members_;
}

std::string Membership::Describe() const {
  std::string text;
  for (const Member& member : Members()) {
    if (member.state == MemberState::kReady) continue;
    absl::StrAppendFormat(&text, "%sworker %d is %s", text.empty() ? "" : ", ", member.id.value(), NameOf(member.state));
    if (member.state == MemberState::kLost) absl::StrAppendFormat(&text, " (%s)", member.lost_because);
  }
  return text;
}

}  // namespace ferry
