#pragma once

// Connects a worker to the next one in the pipeline: through memory when both are on one host and can hand descriptors to each
// other, otherwise over a data connection or gRPC, and from device to device where that is wanted or faster. This header has both
// ends of that.

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/device_peer.h"
#include "kernels/ops.h"
#include "worker/activation_listener.h"
#include "worker/epoch_offer.h"
#include "worker/link_choice.h"
#include "worker/stage_link.h"
#include "worker/stage_link_devices.h"
#include "worker/step_runner.h"

namespace ferry {

class NodeIdentity;  // common/rpc/node_identity.h

// What this worker's links to its two neighbours, and to those that it helps, are made of.
struct StageLinkOptions {
  Ops* ops = nullptr;
  int64_t n_embd = 0;
  int64_t max_rows = 0;                    // of a step
  int64_t num_experts = 0;                 // of a layer
  bool share_memory = false;               // with workers of the same host
  const NodeIdentity* identity = nullptr;  // towards workers of other hosts
  ActivationListener* listener = nullptr;  // for the worker before this one; null: it makes no data connection
  Incarnation incarnation;                 // of this worker
  Transport transport = Transport::kAuto;  // of hidden states to the next worker
  DevicePeers* peers = nullptr;            // null: this worker joins no other device
  std::string no_peers_because;            // for people, where peers is null
  bool peers_over_network = false;         // an interface was named for them
  absl::Duration awake;                    // the compute thread's waits for rows that are expected to be no longer do not sleep
  int num_workers = 2;                     // of the pipeline, which begins an epoch one after the other
};

// The sending worker's end. One thread.
class NextWorker {
 public:
  // Connects to the worker at `address` for one epoch. Before its runner has an epoch, the compute thread of `runner` measures
  // the ways; null: nothing is measured, and auto takes no NCCL. Where a way that was not asked for by name fails, logs the
  // reason and takes another. Unavailable: the worker does not answer before `deadline`. FailedPrecondition: it cannot be reached
  // in the way that options.transport names.
  absl::StatusOr<std::unique_ptr<ActivationSink>> Connect(const std::string& address, Incarnation next, uint64_t epoch,
                                                          const StageLinkOptions& options, StepRunner* runner, Deadline deadline);

  // How hidden states go, for people. Any thread.
  v1::HiddenStatesLink link() const;

 private:
  struct Call;  // to the next worker, in one epoch

  absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectByHost(const Call& call);
  absl::StatusOr<std::unique_ptr<ActivationSink>> TakeTcpIfFaster(const Call& call, std::unique_ptr<ActivationSink> sink);
  absl::Status MeasureTcpOnce(const Call& call, ActivationSink& tcp, Deadline until);
  // Has the next worker take the messages of `request` while `measure` sends them on the compute thread.
  static absl::Status MeasureTogether(const Call& call, internal::v1::MeasureActivationsRequest request, Deadline until,
                                      const std::function<absl::Status()>& measure);
  absl::StatusOr<std::unique_ptr<ActivationSink>> AddDevices(const Call& call, std::unique_ptr<ActivationSink> sink);
  absl::StatusOr<std::unique_ptr<ActivationSink>> AddIfFaster(const Call& call, std::unique_ptr<ActivationSink> sink);
  absl::Status MeasureOnce(const Call& call, DeviceSink& sink);
  void SetLink(v1::HiddenStatesLink link);

  Incarnation measured_with_;    // the next worker with which times_ were measured
  std::vector<LinkTime> times_;  // empty: not measured yet
  mutable std::mutex mutex_;
  v1::HiddenStatesLink link_;  // guarded by mutex_
};

// The receiving worker's end: makes the memory of an epoch and offers it to the previous worker. Thread-safe. The caller has
// checked the incarnation of each request; errors are those that worker.proto lists.
class ActivationSharer {
 public:
  // Answers Worker.ShareActivations.
  absl::StatusOr<internal::v1::ShareActivationsResponse> Share(const internal::v1::ShareActivationsRequest& request,
                                                               const StageLinkOptions& options, StepRunner* runner);

 private:
  std::mutex mutex_;
  EpochOffer offer_;  // guarded by mutex_
};

// Answers Worker.ListenForActivations, and then Worker.TakeActivations. Cancelled: `cancelled` returned true.
absl::StatusOr<internal::v1::ListenForActivationsResponse> ListenForPrevious(
    const internal::v1::ListenForActivationsRequest& request, const StageLinkOptions& options, StepRunner* runner);
absl::Status TakeFromPrevious(const internal::v1::TakeActivationsRequest& request, const StageLinkOptions& options,
                              StepRunner* runner, Deadline deadline, const std::function<bool()>& cancelled);
// Answers Worker.JoinDevices. Cancelled: `cancelled` returned true.
absl::Status JoinPreviousDevice(const internal::v1::JoinDevicesRequest& request, const StageLinkOptions& options,
                                StepRunner* runner, Deadline deadline, const std::function<bool()>& cancelled);
// Answers Worker.MeasureActivations. `pushed`: where hidden states by PushActivations arrive.
absl::Status TakeMeasurement(const internal::v1::MeasureActivationsRequest& request, const StageLinkOptions& options,
                             StepRunner* runner, ActivationQueue* pushed);

}  // namespace ferry
