#pragma once

// The forward pass of a range of layers, which is a worker's computation. Written once over kernels/ops.h.
//
// A stage computes each layer over all rows of a step: first attention in micro-batches, whose size bounds the buffers and the
// rings of sliding layers, then the experts once for all rows, so that each expert is read or copied at most once a step.
//
// One thread at a time. Create sizes all buffers for steps of max_rows rows; a step allocates nothing on the device.

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/model/expert_layout.h"
#include "common/model/model_config.h"
#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "kernels/expert_rates.h"
#include "kernels/ops.h"
#include "worker/expert_cache.h"
#include "worker/expert_forward.h"
#include "worker/expert_link.h"
#include "worker/help_boards.h"
#include "worker/help_service.h"
#include "worker/kv_cache.h"
#include "worker/kv_host_store.h"
#include "worker/stage_link.h"
#include "worker/stage_step.h"
#include "worker/stage_weights.h"
#include "worker/step_trace.h"

namespace ferry {

struct StageOptions {
  ModelConfig model;
  ArenaLayout arena;  // of the whole model
  int64_t first_layer = 0, end_layer = 0;
  KvCacheShape kv;
  int64_t max_rows = 0;            // of a step
  int64_t micro_batch_rows = 0;    // of one piece of attention
  int64_t dense_bytes = 0;         // of the weights to load, for the check of memory before any allocation; 0: unknown
  int64_t expert_slot_bytes = 0;   // device memory for expert slots
  bool expert_slots_auto = false;  // instead: all memory that is free after every other allocation
  bool may_help = false;           // some slots are for experts that this stage computes for other workers
  ExpertPolicy experts;

  bool first() const { return first_layer == 0; }
  bool last() const { return end_layer == model.num_layers; }
};

struct StageResult {
  std::vector<LogitsResult> logits;  // last stage: one for each of StageStep::logits, in order
  v1::ExpertCounters experts;
  double seconds = 0;            // from the first row's arrival to the last row's departure
  double busy_seconds = 0;       // `seconds` without the waits for the previous stage
  std::vector<TraceSpan> spans;  // when the step asked for them
};

class Stage {
 public:
  // Loads the dense weights from `source` and allocates all buffers. `ops` and `link` outlive the stage.
  // InvalidArgument or FailedPrecondition: options or weights that do not fit together. ResourceExhausted: the stage needs more
  // memory than the device has free; the check precedes any allocation, and the message has both sizes and the flags that help.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(Ops* ops, const StageOptions& options, DenseTensorSource& source,
                                                       ExpertLink* link);

  // Device memory that a stage needs beside its dense weights and expert slots.
  static int64_t BytesOf(const Ops& ops, const StageOptions& options);
  // Of that: what it shares with the devices of helpers.
  static int64_t HelpBytesOf(const Ops& ops, const StageOptions& options);

  // Runs one step, from token ids (first stage) or `source`, to logits (last stage) or `sink`; the first stage takes a null
  // source, the last a null sink. DeadlineExceeded: the step's time was over. Aborted: `stop` was requested, or the step failed
  // in an earlier stage. After any error the stage can run other steps.
  // FailedPrecondition: the model has gated delta nets, and a sequence neither begins at position 0 nor goes on where its slot's
  // states are, or a state to be saved is not behind the position that the step says.
  absl::StatusOr<StageResult> Run(const StageStep& step, Deadline deadline, ActivationSource* source, ActivationSink* sink,
                                  const std::stop_token& stop);

  // Between steps: measures for about `time` how fast records are copied into slots, whose contents stay. Zeros without slots.
  absl::StatusOr<ExpertCache::Measurement> MeasureLink(absl::Duration time);
  // After MeasureLink: measures how fast this device computes the experts in the slots' memory. Zeros without slots.
  absl::StatusOr<ExpertRates> MeasureExperts();
  // Before the first step: copies all experts that may be computed here into slots, if there is a slot for each, so that steps
  // ship none. Calls `go_on` with the progress; false ends the copying. Returns how many experts were copied: all, or 0.
  absl::StatusOr<int64_t> FillSlots(const std::function<bool(int64_t done, int64_t all)>& go_on);

  // Between steps: the boards of an epoch; null: this stage neither helps nor is helped.
  void SetBoards(std::shared_ptr<HelpBoards> boards);
  // After SetBoards, before the first step: offers this device's memory to the others.
  void PublishHelpMemory() {
    if (boards_ != nullptr) boards_->Publish(help_memory_.get());
  }
  // Whether this stage can help others: it has boards, and slots for it.
  bool helps() const { return help_ != nullptr && boards_ != nullptr; }
  // Between steps, when another worker has called: maps its memory, and computes what it asks for.
  void ServeHelp() { ServeHelp(nullptr); }

  StepLimits limits() const;
  const StageOptions& options() const { return options_; }
  int64_t dense_bytes() const { return weights_->bytes(); }
  int64_t kv_bytes() const { return kv_->bytes(); }
  const ExpertCache* expert_cache() const { return cache_.get(); }  // null without slots

 private:
  struct StepState;  // of the step in progress

  Stage(Ops* ops, const StageOptions& options, ExpertLink* link) : ops_(*ops), options_(options), link_(*link) {}

  absl::Status CheckMemory() const;
  absl::Status Allocate();
  // How many of the device's slots are for the stage's own experts, and for those of others.
  struct NumSlots {
    int64_t own = 0, help = 0;
  };
  absl::StatusOr<NumSlots> NumExpertSlots() const;
  void HelpUntil(Deadline until, StepTrace* trace);
  void ServeHelp(StepTrace* trace);
  Batch MakeBatch(const StageStep& step) const;
  absl::Status MoveCaches(const StageStep& step, Deadline deadline);
  absl::Status TakeStates(const StageStep& step);
  void KeepStates(const StageStep& step);

  absl::Status Forward(StepState& state);
  absl::Status EnsureRows(StepState& state, int64_t end_row);
  absl::StatusOr<ActivationChunk> NextChunk(StepState& state);
  absl::Status Attention(StepState& state, int64_t layer, int64_t first_row, int64_t num_rows);
  absl::Status GroupedAttention(StepState& state, int64_t layer, int64_t first_row, Tensor normed, Tensor attended);
  absl::Status LatentAttention(StepState& state, int64_t layer, int64_t first_row, Tensor normed, Tensor attended);
  absl::Status GatedDelta(StepState& state, int64_t layer, int64_t first_row, Tensor normed, Tensor attended);
  absl::Status FeedForward(StepState& state, int64_t layer);
  absl::Status Mlp(const MlpConfig& mlp, const LayerWeights& weights, Tensor in, Tensor x);
  void GiveBackUploaded(StepState& state);
  absl::Status SendRows(StepState& state);
  absl::Status ReadLogits(StepState& state);

  Ops& ops_;
  const StageOptions options_;
  ExpertLink& link_;
  std::unique_ptr<StageWeights> weights_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<KvHostStore> host_store_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<ExpertForward> experts_;
  std::unique_ptr<HelpService> help_;  // null: this stage helps nobody
  // Rows and contributions of layers that others help with; null: they go through the host's memory.
  std::unique_ptr<PeerMemory> help_memory_;
  std::shared_ptr<HelpBoards> boards_;
  std::vector<int64_t> state_positions_;  // tokens behind each slot's states; kNoState: unknown. Empty without gated delta nets

  DeviceBuffer residual_;  // F32 [max_rows, n_embd]
  DeviceBuffer normed_;    // act [max_rows, n_embd]
  // [micro_batch_rows, AttentionWidths of the widest layer]
  DeviceBuffer qkv_;       // F32
  DeviceBuffer query_;     // act
  DeviceBuffer latent_;    // act
  DeviceBuffer attended_;  // act
  DeviceBuffer gate_up_;   // F32 [micro_batch_rows, 2 n_ff] of an MLP, and a number a row of one that is gated
  DeviceBuffer hidden_;    // act [micro_batch_rows, n_ff] of an MLP
  DeviceBuffer gathered_;  // F32 [kLogitsRows, n_embd], last stage
  DeviceBuffer logits_;    // F32 [kLogitsRows, vocab], last stage
};

}  // namespace ferry
