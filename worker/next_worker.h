#pragma once

// The way to the next worker in the pipeline: shared memory where both are on one host and can hand descriptors to each other,
// else gRPC. Both ends' part of that is here.

#include <memory>
#include <mutex>
#include <string>

#include "absl/time/time.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "kernels/ops.h"
#include "worker/epoch_offer.h"
#include "worker/stage_link.h"
#include "worker/step_runner.h"

namespace ferry {

// What both ends of this worker are made of.
struct StageLinkOptions {
  Ops* ops = nullptr;
  int64_t n_embd = 0;
  int64_t max_rows = 0;       // of a step
  bool share_memory = false;  // with workers of the same host
};

// Connects to the worker at `address` for one epoch. Unavailable: nobody answers until `deadline`. A worker that cannot share
// memory, though it might, is sent messages, and the log says why.
absl::StatusOr<std::unique_ptr<ActivationSink>> ConnectNextWorker(const std::string& address, Incarnation next, uint64_t epoch,
                                                                  const StageLinkOptions& options, absl::Time deadline);

// The next worker's part: makes the memory of an epoch and offers it to the previous one. Thread-safe.
class ActivationSharer {
 public:
  // Errors as Worker.ShareActivations says in worker.proto, apart from the incarnation, which the caller has checked.
  absl::StatusOr<internal::v1::ShareActivationsResponse> Share(const internal::v1::ShareActivationsRequest& request,
                                                               const StageLinkOptions& options, StepRunner* runner);

 private:
  std::mutex mutex_;
  EpochOffer offer_;  // guarded by mutex_
};

}  // namespace ferry
