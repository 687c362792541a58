#pragma once

// The workers of one epoch as a StepExecutor: one stream to each, every step sent to all of them at once. Token ids go
// to the first alone, wanted logits to the last alone; what lies between travels from worker to worker. A step has
// succeeded when every worker has answered for it.
//
// A pipeline fails as a whole and once: a stream ends, a worker reports an error, an answer makes no sense, or the
// oldest step takes longer than step_timeout. Its owner is told, and what was in flight is never answered.

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
#include "coordinator/trace_writer.h"

namespace ferry {

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
  double step_cost_rows = std::numeric_limits<double>::infinity();  // of the slowest worker, as step_rows.h has it
  absl::Duration begin_timeout = absl::Seconds(10);
  absl::Duration step_timeout = absl::Seconds(120);
  TraceWriter* trace = nullptr;  // where every step's spans go; null: none are asked for
};

// How a pipeline ended.
struct PipelineFailure {
  absl::Status status;              // what its requests are told
  std::optional<WorkerId> suspect;  // who seems to be at fault
  Incarnation incarnation;          // of the suspect
  bool lost = false;                // the suspect's connection is gone
};

class Pipeline : public StepExecutor {
 public:
  using OnFailed = std::function<void(PipelineFailure)>;

  // Tells every worker, the last one first so that each finds its successor ready, and opens the streams. Waits for at
  // most begin_timeout. An error fills `failure`. `on_failed` is called once at most, from any thread, without a lock
  // held; it must not destroy the pipeline. `clock` must outlive it.
  static absl::StatusOr<std::unique_ptr<Pipeline>> Begin(const PipelineOptions& options, const Clock* clock, OnFailed on_failed,
                                                         PipelineFailure* failure);
  // Fails the pipeline, if it has not failed, when its oldest step is over its time. To be called now and then.
  virtual void CheckTimeout() = 0;
};

// Asks the process at `address` to end, for an orderly stop of the cluster.
absl::Status ShutdownWorker(const std::string& address, absl::Duration timeout);

}  // namespace ferry
