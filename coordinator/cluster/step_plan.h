#pragma once

// One step of the cluster: rows of several sequences that go through all layers together, and its outcome.

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "common/cache_move.h"
#include "common/ids.h"
#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/ops.h"

namespace ferry {

struct RowLogits {
  int64_t offset = 0;  // which of the sequence's rows in this step
  LogitsRequest wanted;
};

struct PlannedSequence {
  SlotId slot;
  bool decoding = false;  // it has one row, of a sampled token
  int64_t first_position = 0;
  std::vector<int32_t> token_ids;  // rows at first_position and on; not empty
  std::vector<int32_t> blocks;     // KV blocks of positions 0 to the end of this step
  std::vector<RowLogits> logits;   // offsets increasing
};

struct StepPlan {
  StepId id;
  bool forget_experts = false;   // the workers empty their expert slots first
  std::vector<CacheMove> moves;  // before the rows, in this order
  std::vector<PlannedSequence> sequences;
  int64_t num_rows() const {
    int64_t rows = 0;
    for (const PlannedSequence& sequence : sequences) rows += static_cast<int64_t>(sequence.token_ids.size());
    return rows;
  }
};

struct StepOutcome {
  std::vector<LogitsResult> logits;  // for each wanted row, sequence after sequence
  v1::ExpertCounters experts;        // summed over the workers
};

// Executes steps: the pipeline of workers, or a fake.
class StepExecutor {
 public:
  using Done = std::function<void(StepOutcome)>;

  virtual ~StepExecutor() = default;
  virtual int max_steps_in_flight() const = 0;
  // The cost of a step beside its rows, in rows (step_rows.h). It bounds how short a prompt's steps may be.
  virtual double step_cost_rows() const { return std::numeric_limits<double>::infinity(); }
  // Queues a step; steps end in order. Calls `done` once, from any thread, when the step has succeeded. A step that fails ends
  // the executor, which tells its owner; `done` is then never called.
  virtual void Submit(StepPlan step, Done done) = 0;
};

}  // namespace ferry
