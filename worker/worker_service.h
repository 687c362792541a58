#pragma once

// worker.proto over gRPC: translates, and decides nothing but who may call. Until a runner is attached, everything but Shutdown
// is refused with FAILED_PRECONDITION.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "common/ids.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "worker/next_worker.h"
#include "worker/stage_link.h"
#include "worker/step_rings.h"
#include "worker/step_runner.h"

namespace ferry {

class WorkerService final : public internal::v1::Worker::Service {
 public:
  // Shutdown calls `end` with OK just before its answer. When this process cannot go on serving, `end` is called with the reason.
  // Any thread.
  WorkerService(Incarnation incarnation, std::function<void(const absl::Status&)> end)
      : incarnation_(incarnation), end_(std::move(end)) {}

  // The worker is loaded: serves calls with `runner` and `activations`, which outlive the gRPC server.
  void Attach(StepRunner* runner, ActivationQueue* activations, const StageLinkOptions& links);

  // How hidden states go to the next worker. Any thread.
  v1::HiddenStatesLink hidden_states() const { return next_.link(); }

  grpc::Status BeginEpoch(grpc::ServerContext* context, const internal::v1::BeginEpochRequest* request,
                          internal::v1::BeginEpochResponse* response) override;
  grpc::Status RunSteps(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<internal::v1::StepResponse, internal::v1::StepRequest>* stream) override;
  grpc::Status PushActivations(grpc::ServerContext* context, grpc::ServerReader<internal::v1::Activations>* stream,
                               internal::v1::PushActivationsResponse* response) override;
  grpc::Status ShareActivations(grpc::ServerContext* context, const internal::v1::ShareActivationsRequest* request,
                                internal::v1::ShareActivationsResponse* response) override;
  grpc::Status ListenForActivations(grpc::ServerContext* context, const internal::v1::ListenForActivationsRequest* request,
                                    internal::v1::ListenForActivationsResponse* response) override;
  grpc::Status TakeActivations(grpc::ServerContext* context, const internal::v1::TakeActivationsRequest* request,
                               internal::v1::TakeActivationsResponse* response) override;
  grpc::Status JoinDevices(grpc::ServerContext* context, const internal::v1::JoinDevicesRequest* request,
                           internal::v1::JoinDevicesResponse* response) override;
  grpc::Status MeasureActivations(grpc::ServerContext* context, const internal::v1::MeasureActivationsRequest* request,
                                  internal::v1::MeasureActivationsResponse* response) override;
  grpc::Status Ping(grpc::ServerContext* context, const internal::v1::PingRequest* request,
                    internal::v1::PingResponse* response) override;
  grpc::Status ProbeLink(grpc::ServerContext* context, const internal::v1::ProbeLinkRequest* request,
                         internal::v1::ProbeLinkResponse* response) override;
  grpc::Status Shutdown(grpc::ServerContext* context, const internal::v1::ShutdownRequest* request,
                        internal::v1::ShutdownResponse* response) override;

 private:
  struct Attached {
    StepRunner* runner = nullptr;
    ActivationQueue* activations = nullptr;
    StageLinkOptions links;
  };
  absl::StatusOr<Attached> Get() const;
  // Maps the boards of an epoch and hands them to the runner.
  static absl::Status JoinHelp(uint64_t epoch, const internal::v1::HelpBoards& help, const Attached& attached, Deadline deadline);
  // Ok: the coordinator of this worker calls; PermissionDenied, Aborted.
  absl::Status CheckCoordinator(const grpc::ServerContext& context, uint64_t meant) const;
  absl::Status CheckIncarnation(uint64_t meant) const;
  // Ok: another worker of the cluster calls, and means this one.
  absl::Status CheckNeighbour(const grpc::ServerContext& context, uint64_t meant) const;
  // What a stream says before its first message; 0: nothing.
  static uint64_t IncarnationOf(const grpc::ServerContext& context);

  const Incarnation incarnation_;
  const std::function<void(const absl::Status&)> end_;
  ActivationSharer sharer_;
  std::mutex connecting_;  // guards NextWorker::Connect: an earlier epoch's call may still run
  NextWorker next_;
  StepSharer step_sharer_;
  std::atomic<int> step_streams_{0};  // that are open
  mutable std::mutex mutex_;
  Attached attached_;  // guarded by mutex_
};

}  // namespace ferry
