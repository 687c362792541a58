#pragma once

// The worker's tie to its coordinator: it registers, then sends heartbeats until one side ends. A worker without a coordinator is
// of no use to anybody, so when the tie is lost the worker ends.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

class Agent {
 public:
  // Asks for a place until it has one. A coordinator that cannot be reached for `patience` is given up (Unavailable); one that
  // answers that it is not ready yet is waited for. Other answers are final. Cancelled: `cancelled` became true.
  static absl::StatusOr<internal::v1::RegisterResponse> Register(internal::v1::Cluster::StubInterface* cluster,
                                                                 const internal::v1::RegisterRequest& request,
                                                                 absl::Duration patience, const std::function<bool()>& cancelled);

  struct Options {
    uint32_t worker_id = 0;
    Incarnation incarnation;
    absl::Duration interval, timeout;
    bool same_host = false;  // a refused connection then means that the process is gone, and is not waited out
  };
  // Begins to send heartbeats, filled in by `fill` (id and incarnation are set here). `on_lost` is called once, from the
  // heartbeat thread, when no heartbeat succeeded for options.timeout, or one was refused. All borrowed.
  Agent(internal::v1::Cluster::StubInterface* cluster, const Options& options,
        std::function<void(internal::v1::HeartbeatRequest*)> fill, std::function<void(const absl::Status&)> on_lost);
  ~Agent();

  // Sends the next heartbeat at once: something that the coordinator waits for has changed.
  void Hurry();

 private:
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
