#pragma once

// The worker's membership: registers with the coordinator, then sends heartbeats. A worker that loses its coordinator ends, since
// nothing can use it any more.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

class Agent {
 public:
  // Asks for a place until the coordinator gives one, and waits while the coordinator says that it is not ready. Other
  // answers are final. Unavailable: it could not be reached for `patience`. Cancelled: `cancelled` returned true.
  static absl::StatusOr<internal::v1::RegisterResponse> Register(internal::v1::Cluster::StubInterface* cluster,
                                                                 const internal::v1::RegisterRequest& request,
                                                                 absl::Duration patience, const std::function<bool()>& cancelled);

  struct Options {
    uint32_t worker_id = 0;
    Incarnation incarnation;
    absl::Duration interval, timeout;
    bool same_machine = false;  // the coordinator's: a refused connection then means at once that its process is gone
  };
  // Starts the heartbeat thread. It sets id and incarnation of each request and lets `fill` set the rest. It calls `on_lost` once
  // when no heartbeat succeeded for options.timeout, or when one was refused. `cluster` outlives the agent. ResourceExhausted: no
  // thread can be started.
  static absl::StatusOr<std::unique_ptr<Agent>> Start(internal::v1::Cluster::StubInterface* cluster, const Options& options,
                                                      std::function<void(internal::v1::HeartbeatRequest*)> fill,
                                                      std::function<void(const absl::Status&)> on_lost);
  ~Agent();

  // Sends the next heartbeat at once, after a change that the coordinator waits for.
  void Hurry();

 private:
  Agent(internal::v1::Cluster::StubInterface* cluster, const Options& options,
        std::function<void(internal::v1::HeartbeatRequest*)> fill, std::function<void(const absl::Status&)> on_lost)
      : cluster_(*cluster), options_(options), fill_(std::move(fill)), on_lost_(std::move(on_lost)) {}
  void Loop();
  absl::Status Beat(absl::Duration timeout);

  internal::v1::Cluster::StubInterface& cluster_;
  const Options options_;
  const std::function<void(internal::v1::HeartbeatRequest*)> fill_;
  const std::function<void(const absl::Status&)> on_lost_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  bool hurry_ = false;
  std::thread thread_;
};

}  // namespace ferry
