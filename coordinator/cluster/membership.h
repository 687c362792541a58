#pragma once

// The members of the cluster: a state machine without RPC.
//
// A cluster has a fixed number of places, one a layer range. A worker process takes a place with a random incarnation,
// loads, becomes ready, and keeps the place while its heartbeats come. A process that is lost stays lost: it may come
// back only under another incarnation, so that nothing of its earlier life is taken for the new one's.
//
//   kStarting --Register--> kLoading --heartbeat "ready"--> kReady        any --missed heartbeats, MarkLost--> kLost
//   kLost --Register (new incarnation)--> kLoading
//
// An epoch is a time during which the same processes are ready in all places. It ends when one of them is lost or
// replaced.
//
// Thread-safe.

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/status.h"

namespace ferry {

enum class MemberState { kStarting, kLoading, kReady, kLost };
const char* NameOf(MemberState state);  // "starting", "loading", "ready", "lost"

struct MembershipOptions {
  int num_workers = 1;
  absl::Duration heartbeat_timeout = absl::Seconds(10);
};

// What a process reports when it registers.
struct MemberInfo {
  Incarnation incarnation;
  std::string machine;    // MachineId
  std::string address;    // where its services listen
  bool loopback = false;  // only processes of its host can reach the address
  std::string device;
  int32_t pid = 0;
};

struct Member {
  WorkerId id;
  MemberState state = MemberState::kStarting;
  MemberInfo info;  // of the last process that had the place
  absl::Time last_heard;
  std::string lost_because;  // kLost
};

class Membership {
 public:
  // `clock` must outlive this.
  Membership(const MembershipOptions& options, const Clock* clock);

  int num_workers() const { return options_.num_workers; }

  // Gives the process a place: the wanted one, else the first never taken, else the first lost. A place that a process has is
  // never taken from it: it has to be lost first. FailedPrecondition: all places are taken; Unavailable: the wanted one is taken;
  // InvalidArgument: no incarnation, no such place, or a neighbour on another host that cannot send to it, or to which it cannot
  // send; Aborted: this incarnation has or had a place.
  absl::StatusOr<WorkerId> Register(const MemberInfo& info, std::optional<WorkerId> wanted);

  // Aborted: not the process that has the place, or one that was lost. InvalidArgument: no such place.
  absl::Status RecordHeartbeat(WorkerId worker, Incarnation incarnation, bool ready);
  // The checks of RecordHeartbeat alone.
  absl::Status Check(WorkerId worker, Incarnation incarnation) const;

  // Declares lost the processes without a heartbeat for heartbeat_timeout, and returns them.
  std::vector<Member> ExpireHeartbeats();
  // Declares the process lost. False: that incarnation does not have the place, or is lost already.
  bool MarkLost(WorkerId worker, Incarnation incarnation, const std::string& because);

  // Begins the next epoch and returns its number, 1 or more. FailedPrecondition: not all are ready.
  absl::StatusOr<uint64_t> BeginEpoch();
  void EndEpoch();
  // The current epoch; 0: none.
  uint64_t epoch() const;

  bool AllReady() const;
  std::vector<Member> Members() const;  // one a place
  // "worker 1 is lost (...), worker 2 is loading"; empty when all are ready.
  std::string Describe() const;

 private:
  absl::Status CheckLocked(WorkerId worker, Incarnation incarnation) const;
  absl::Status CheckNeighboursLocked(WorkerId place, const MemberInfo& info) const;
  void LoseLocked(Member& member, const std::string& because);

  const MembershipOptions options_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::vector<Member> members_;
  uint64_t last_epoch_ = 0;
  bool epoch_lasts_ = false;
};

}  // namespace ferry
