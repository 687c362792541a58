#pragma once

// Runs a cluster: admits workers, begins an epoch when all are ready, ends it when one is lost, and begins the next when its
// place is taken again. Membership keeps the states and Pipeline runs the steps. The controller orders these events:
//
//   epoch begins   every worker agrees -> the generation loop gets the pipeline -> health says SERVING
//   epoch ends     health says NOT_SERVING -> requests are held or end -> the pipeline is closed -> the lost worker's place is
//   free
//
// When a step fails or takes too long and no worker is lost, a new epoch begins with the same workers. If such epochs end
// early, the pause before the next one grows.

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/model/model_config.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/pipeline.h"
#include "coordinator/experts/expert_exchange.h"
#include "coordinator/generation/generation_loop.h"
#include "coordinator/planning/placement.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// A process that has a place: what clients are told, and what they are not.
struct RegisteredWorker {
  v1::WorkerInfo info;
  Incarnation incarnation;
  std::string address;
};

struct ClusterOptions {
  ModelConfig model;
  std::string model_header;  // what workers read the model from: common/model/model_header.h
  uint64_t fingerprint = 0;
  Placement placement;
  std::string expert_transport = "auto";  // for workers that say auto
  bool ooae = true;
  bool help = false;  // workers of one host compute shares of each other's layers
  int max_steps_in_flight = 0;
  absl::Duration heartbeat_interval, heartbeat_timeout, step_timeout;
  TraceWriter* trace = nullptr;  // null: no trace is written
  // Called from the controller's thread when all workers are ready for the first time, before they serve: what has to be
  // measured while nothing runs. May take some seconds. Null: nothing.
  std::function<void(const std::vector<RegisteredWorker>&)> before_first_epoch;
  const NodeIdentity* identity = nullptr;  // towards workers of other hosts; null: none are taken in
};

struct ExpertDataPlace {
  std::string unix_path;  // for workers of this host
  int port = 0;           // for those of other hosts; 0: none
};

class ClusterController {
 public:
  // All borrowed. `set_serving` is called from the controller's thread. ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<ClusterController>> Create(const ClusterOptions& options, GenerationLoop* loop,
                                                                   const Clock* clock, std::function<void(bool)> set_serving);
  ~ClusterController();  // Stop()

  // The experts are loaded: admits workers from now on. Both outlive this. `data`: where workers make data connections for
  // experts.
  void Open(const ExpertStore* store, ExpertExchange* exchange, const ExpertDataPlace& data = {});
  // The largest request of a worker of this host.
  MailboxShape mailbox_shape() const;
  // The progress that the answer to a worker before Open has.
  void SetLoadProgress(double fraction);
  // Ends the current epoch, if any, and all requests with `status`. No other begins. Idempotent.
  void Stop(const absl::Status& status);
  // Waits for the first epoch to begin; false when it has not by `deadline`.
  bool WaitUntilServing(absl::Time deadline);

  // The cluster's side of cluster.proto, whose errors these return. Thread-safe.
  absl::Status Register(const internal::v1::RegisterRequest& request, internal::v1::RegisterResponse* response);
  absl::Status Heartbeat(const internal::v1::HeartbeatRequest& request, internal::v1::HeartbeatResponse* response);
  absl::StatusOr<LayerRange> LayersOf(WorkerId worker, Incarnation incarnation) const;
  void ListMembers(internal::v1::ListMembersResponse* response) const;

  // "loading" before the first epoch, "serving" in one, "degraded" between two.
  std::string state() const;
  std::vector<RegisteredWorker> Workers() const;  // one a place
  // The processes that have a place now.
  std::vector<PipelineWorker> LiveWorkers() const;
  std::string Describe() const { return membership_.Describe(); }

 private:
  // A worker's last report, for display.
  struct Report {
    std::string expert_transport;
    internal::v1::HeartbeatRequest heartbeat;
  };

  ClusterController(const ClusterOptions& options, GenerationLoop* loop, const Clock* clock,
                    std::function<void(bool)> set_serving);
  void Run();
  void ExpireHeartbeats();
  void TryBeginEpoch();
  double StepCost() const;
  void EndEpoch(const PipelineFailure& failure);
  // Declares lost whose process is gone, without waiting for the heartbeats that do not come. Under register_mutex_.
  void LoseTheGone();
  // Ends the expert exchange with a lost process, unless another has taken its place meanwhile.
  void RemovePeer(WorkerId worker, Incarnation lost);
  bool StopRequested() const;
  void FillResponse(const internal::v1::RegisterRequest& request, WorkerId worker,
                    internal::v1::RegisterResponse* response) const;

  const ClusterOptions options_;
  GenerationLoop& loop_;
  const Clock& clock_;
  const std::function<void(bool)> set_serving_;
  Membership membership_;

  std::mutex register_mutex_;  // one registration at a time: a place, its peer and its mailboxes go together

  mutable std::mutex mutex_;
  std::condition_variable wake_, changed_;
  const ExpertStore* store_ = nullptr;
  ExpertExchange* exchange_ = nullptr;
  ExpertDataPlace expert_data_;
  double load_progress_ = 0;
  bool stop_ = false;
  bool serving_ = false, has_served_ = false;
  std::optional<PipelineFailure> failure_;
  std::vector<Report> reports_;  // one a place

  // Of the controller's thread.
  std::unique_ptr<Pipeline> pipeline_;
  bool first_epoch_ = true;
  absl::Time epoch_began_, next_attempt_;
  absl::Duration pause_;
  std::thread thread_;
};

}  // namespace ferry
