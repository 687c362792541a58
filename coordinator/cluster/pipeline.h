#pragma once

// The workers of one epoch as a StepExecutor. It sends every step to all workers at once: token ids to the first only, wanted
// logits to the last only. Hidden states travel from worker to worker. A step has succeeded when every worker has answered it.
//
// A pipeline fails as a whole, once: when a stream ends, a worker reports an error, an answer is invalid, or the oldest step
// takes longer than step_timeout. It then tells its owner, and steps in flight are never answered.

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/status.h"
#include "coordinator/cluster/step_plan.h"
#include "coordinator/experts/help_offer.h"
#include "coordinator/trace_writer.h"

namespace ferry {

class NodeIdentity;  // common/rpc/node_identity.h

struct PipelineWorker {
  WorkerId id;
  Incarnation incarnation;
  std::string address;
};

struct PipelineOptions {
  uint64_t epoch = 0;
  std::vector<PipelineWorker> workers;  // in order of their layers
  int64_t vocab_size = 0;
  int max_steps_in_flight = 0;                                      // 0: one a worker
  double step_cost_rows = std::numeric_limits<double>::infinity();  // StepCostRows of the slowest worker (step_rows.h)
  HelpOffer help;                                                   // without keys: no worker helps another
  absl::Duration begin_timeout = absl::Seconds(10);
  absl::Duration step_timeout = absl::Seconds(120);
  TraceWriter* trace = nullptr;                                   // where every step's spans go; null: none are asked for
  const NodeIdentity* identity = nullptr;                         // for workers of other hosts; null: there are none
  std::function<void(uint64_t step, int64_t rows)> on_step = {};  // called before any worker is sent the step
  // Called when a worker has computed a step of so many rows.
  std::function<void(WorkerId, int64_t rows, const v1::ExpertCounters&)> on_computed = {};
};

// How a pipeline ended.
struct PipelineFailure {
  absl::Status status;              // the status of its requests
  std::optional<WorkerId> suspect;  // the worker that seems to be at fault
  Incarnation incarnation;          // of the suspect
  bool lost = false;                // the connection to the suspect broke
};

class Pipeline : public StepExecutor {
 public:
  using OnFailed = std::function<void(PipelineFailure)>;

  // Begins the epoch on every worker, from the last to the first so that each finds its successor ready, and opens the streams.
  // Waits for at most begin_timeout. On an error it fills `failure`. Calls `on_failed` at most once, from any thread, without a
  // lock held; `on_failed` must not destroy the pipeline. `clock` outlives it.
  static absl::StatusOr<std::unique_ptr<Pipeline>> Begin(const PipelineOptions& options, const Clock* clock, OnFailed on_failed,
                                                         PipelineFailure* failure);
  // Fails the pipeline if its oldest step has taken longer than step_timeout. Its owner calls this periodically.
  virtual void CheckTimeout() = 0;
};

// Asks a worker's process to end, for an orderly stop of the cluster.
absl::Status ShutdownWorker(const PipelineWorker& worker, const NodeIdentity* identity, absl::Duration timeout);

}  // namespace ferry
