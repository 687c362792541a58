#pragma once

// What the coordinator of this host says of its workers, asked several times a second on the cluster's own plane. The supervisor
// needs it for what a parent does not see: that a child hangs, and that the coordinator does.
//
// The coordinator is asked because it alone decides who is lost. The API would need a key where there are keys, and a child's
// exit tells nothing of one that is stopped.

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/repeating_thread.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

class ClusterWatch {
 public:
  // `socket`: of the cluster's plane (ferry-coordinator --cluster-socket). Asks from now on, on a thread of its own.
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<ClusterWatch>> Start(const std::string& socket);
  ~ClusterWatch();

  // Whether the coordinator declared the process lost, by its last answer.
  bool IsLost(pid_t worker) const;
  // How long it is since the coordinator last answered, or since the start.
  absl::Duration Silence() const;

 private:
  explicit ClusterWatch(const std::string& socket);
  void Ask();

  const std::unique_ptr<internal::v1::Cluster::Stub> cluster_;
  mutable std::mutex mutex_;
  std::set<pid_t> lost_;
  Stopwatch since_answer_;
  std::unique_ptr<RepeatingThread> thread_;
};

}  // namespace ferry
