// Steps through the pipeline, as each side reads what the other sends: requests become indices that exist, answers the logits
// that were asked for, hidden states whole rows in order.
//
// Input (wire_input.h): a byte that chooses the target; messages of that kind.

#include <algorithm>
#include <vector>

#include "common/deadline.h"
#include "coordinator/cluster/step_answer.h"
#include "ferry/internal/v1/worker.pb.h"
#include "tests/fuzz/wire_input.h"
#include "worker/stage_link.h"
#include "worker/stage_step.h"

namespace ferry {
namespace {

void FuzzStepRequest(WireInput& input) {
  const StepLimits limits = {.max_rows = 24,
                             .num_slots = 3,
                             .num_blocks = 7,
                             .context_length = 100,
                             .vocab_size = 50,
                             .first_stage = input.Byte() % 2 == 0,
                             .max_logits_bytes = 2048};
  const absl::StatusOr<StageStep> step = CheckStep(input.Next<internal::v1::StepRequest>(), limits);
  if (!step.ok()) return;
  Require(step->timeout > absl::ZeroDuration() && step->timeout <= limits.max_timeout);
  Require(step->num_rows() >= 1 && step->num_rows() <= limits.max_rows);
  std::vector<int32_t> slots;
  int64_t row = 0;
  for (const StageSequence& sequence : step->sequences) {
    Require(sequence.first_row == row && sequence.num_rows >= 1 && sequence.first_position >= 0);
    row += sequence.num_rows;
    const int64_t end = sequence.first_position + sequence.num_rows;
    Require(end <= limits.context_length && static_cast<int64_t>(sequence.blocks.size()) * kKvBlockTokens >= end);
    for (const int32_t block : sequence.blocks) Require(block >= 0 && block < limits.num_blocks);
    Require(sequence.slot >= 0 && sequence.slot < limits.num_slots);
    slots.push_back(sequence.slot);
    if (limits.first_stage) Require(static_cast<int64_t>(sequence.token_ids.size()) == sequence.num_rows);
    for (const int32_t id : sequence.token_ids) Require(id >= 0 && id < limits.vocab_size);
  }
  std::sort(slots.begin(), slots.end());
  Require(std::adjacent_find(slots.begin(), slots.end()) == slots.end());
  int64_t last = -1;
  for (const WantedLogits& wanted : step->logits) {
    Require(wanted.row > last && wanted.row < step->num_rows());
    Require(wanted.top_n >= 0 && wanted.top_n <= limits.vocab_size && wanted.target < limits.vocab_size);
    last = wanted.row;
  }
}

void FuzzStepResponse(WireInput& input) {
  constexpr int64_t kVocab = 6;
  const uint8_t what = input.Byte();
  const std::vector<LogitsRequest> wanted = {{.top_n = what % 4, .target = 1}, {.top_n = kVocab}};
  const bool last = what & 0x80;
  const internal::v1::StepResponse response = input.Next<internal::v1::StepResponse>();
  const absl::StatusOr<std::vector<LogitsResult>> logits =
      CheckStepResponse(response, {.worker = WorkerId(2),
                                   .epoch = 3,
                                   .step = 4,
                                   .wanted = last ? std::span<const LogitsRequest>(wanted) : std::span<const LogitsRequest>(),
                                   .vocab_size = kVocab});
  if (!logits.ok()) {
    Require(logits.status().message().size() < 2 * kMaxErrorBytes);
    return;
  }
  Require(response.epoch() == 3 && response.step() == 4 && response.code() == 0);
  Require(logits->size() == (last ? 2 : 0));
  for (size_t i = 0; i < logits->size(); ++i) {
    const LogitsResult& row = (*logits)[i];
    Require(static_cast<int32_t>(row.logits.size()) == wanted[i].top_n);
    Require(row.ids.size() == (wanted[i].top_n == kVocab ? 0 : row.logits.size()));
    for (const int32_t id : row.ids) Require(id >= 0 && id < kVocab);
  }
}

// Messages of one PushActivations stream into the queue, and a stage that takes rows as it needs them.
void FuzzActivations(WireInput& input) {
  constexpr int64_t kEmbd = 2, kRows = 6;
  ActivationQueue queue(kEmbd, kRows);
  queue.BeginEpoch(1);
  uint64_t step = 1;
  int64_t row = 0;
  while (!input.empty()) {
    if (input.Byte() % 2 == 0) {
      internal::v1::Activations message = input.Next<internal::v1::Activations>();
      const absl::Status taken = message.error().empty()
                                     ? queue.Push(message.epoch(), message.step(), message.first_row(), message.num_rows(),
                                                  std::move(*message.mutable_data()), [] { return true; })
                                     : queue.PushFailure(message.epoch(), message.step(), message.error());
      if (!taken.ok()) return;  // ends the stream
      Require(message.epoch() == 1);
    } else {
      const absl::StatusOr<ActivationChunk> chunk = queue.Next(step, row, Deadline::In(absl::ZeroDuration()));
      if (chunk.ok()) {
        Require(chunk->first_row == row && !chunk->values.empty());
        Require(chunk->values.size() % kEmbd == 0);
        row += static_cast<int64_t>(chunk->values.size()) / kEmbd;
        Require(row <= kRows);
      }
      if (!chunk.ok() || row == kRows) ++step, row = 0;
    }
  }
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ferry::WireInput input(data, size);
  switch (input.Byte() % 3) {
    case 0:
      ferry::FuzzStepRequest(input);
      break;
    case 1:
      ferry::FuzzStepResponse(input);
      break;
    case 2:
      ferry::FuzzActivations(input);
      break;
  }
  return 0;
}
