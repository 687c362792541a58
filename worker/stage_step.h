#pragma once

// One step of the pipeline as a worker runs it: rows of some sequences that go through its layers together. Only CheckStep makes
// a StageStep, so its slots, blocks and tokens are valid indices.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "common/cache_move.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"

namespace ferry {

// What a step may ask for, given the model and the caches of this worker.
struct StepLimits {
  int64_t max_rows = 0;  // CacheShape.max_batch_tokens
  int64_t num_slots = 0;
  int64_t num_blocks = 0;  // of a full layer's KV cache
  int64_t num_host_blocks = 0, num_host_states = 0;
  int64_t context_length = 0;  // positions are below it
  int64_t vocab_size = 0;
  bool first_stage = false;  // token ids are wanted
  absl::Duration max_timeout = absl::Hours(1);
  int64_t max_logits_bytes = int64_t{48} << 20;  // of one answer: a message holds 64 MiB
};

struct WantedLogits {
  int64_t row = 0;  // of the step
  int32_t top_n = 0;
  int32_t target = -1;
};

struct StageSequence {
  int32_t slot = 0;
  int64_t first_row = 0;  // of the step
  int64_t num_rows = 0;
  int64_t first_position = 0;
  std::vector<int32_t> token_ids;  // first stage: one a row
  std::vector<int32_t> blocks;     // KV blocks of positions 0 to the end of this step
};

struct StageStep {
  uint64_t epoch = 0;
  uint64_t step = 0;
  absl::Duration timeout;
  bool forget_experts = false;   // the expert slots are emptied first
  std::vector<CacheMove> moves;  // before the rows, in this order
  std::vector<StageSequence> sequences;
  std::vector<WantedLogits> logits;  // rows increasing
  bool trace = false;                // its spans are wanted

  int64_t num_rows() const { return sequences.empty() ? 0 : sequences.back().first_row + sequences.back().num_rows; }
};

// InvalidArgument names the field and its range: nothing to do or more rows than max_rows; a slot out of range or given
// twice; positions beyond the context; blocks too few, out of range or given twice in a sequence; token ids missing or out
// of range; logits out of order, too many, or of a row that is not there; a move with a field out of range; a timeout not in
// (0, max_timeout].
absl::StatusOr<StageStep> CheckStep(const internal::v1::StepRequest& request, const StepLimits& limits);

}  // namespace ferry
