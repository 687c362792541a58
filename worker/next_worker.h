#pragma once

// Connects a worker to the next one in the pipeline: through shared memory when both are on one host and can hand descriptors to
// each other, otherwise over gRPC. This header has both ends of that.

#include <memory>
#include <mutex>
#include <string>

#include "common/deadline.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "kernels/ops.h"
#include "worker/epoch_offer.h"
#include "worker/stage_link.h"
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
};

// Connects to the worker at `address` for one epoch. When sharing memory fails on one host, logs the reason and uses gRPC.
// Unavailable: the worker does not answer before `deadline`.
absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectNextWorker(const std::string& address, Incarnation next, uint64_t epoch,
                                                                  const StageLinkOptions& options, Deadline deadline);

// The receiving worker's end: makes the memory of an epoch and offers it to the previous worker. Thread-safe.
class ActivationSharer {
 public:
  // Answers Worker.ShareActivations, with the errors that worker.proto lists. The caller has checked the incarnation.
  absl::StatusOr<internal::v1::ShareActivationsResponse> Share(const internal::v1::ShareActivationsRequest& request,
                                                               const StageLinkOptions& options, StepRunner* runner);

 private:
  std::mutex mutex_;
  EpochOffer offer_;  // guarded by mutex_
};

}  // namespace ferry
