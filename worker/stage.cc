#include "worker/stage.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "common/deadline.h"
#include "common/log.h"
#include "kernels/element_bytes.h"
#include "worker/device_rows.h"

namespace ferry {
namespace {

constexpr int64_t kNoState = -1;             // of a slot: nobody knows what its states are
constexpr int64_t kLogitsRows = 64;          // rows through the output matrix at once: bounds the logits' buffer
constexpr int64_t kMinMemoryLeft = 1 << 30;  // of the device, by automatic slots: for the backend's own use and for others
constexpr int64_t kMinRowsToTime = 32;       // decode is too quick to be timed always: 3 us an operation of 5 to 30
constexpr absl::Duration kLookAtRows = absl::Microseconds(100);    // beside the offer to help: rows ring no bell
constexpr absl::Duration kLookAtCopies = absl::Microseconds(100);  // less than two records take on any link
constexpr absl::Duration kLinkPatience = absl::Seconds(60);        // for a remote link's first records
constexpr int64_t kHelpSlots = 24;          // a link brings a record in 0.1 to 1 ms, and a device computes it in less
constexpr int64_t kSlotsForAHelpSlot = 32;  // of a device whose slots do not hold all of its experts
constexpr absl::Duration kFillPatience = absl::Seconds(60);  // for one expert

// Bytes of the stage's own buffers, in the order of its members.
struct BufferSizes {
  int64_t residual = 0, normed = 0, qkv = 0, query = 0, latent = 0, attended = 0, gate_up = 0, hidden = 0, gathered = 0,
          logits = 0;
  int64_t total() const { return residual + normed + qkv + query + latent + attended + gate_up + hidden + gathered + logits; }
};
BufferSizes SizesOf(const Ops& ops, const StageOptions& options) {
  const ModelConfig& model = options.model;
  const int64_t act = ElementBytes(ops.activation_dtype()), f32 = sizeof(float);
  const int64_t micro = std::min(options.micro_batch_rows, options.max_rows);
  const int64_t logits_rows = options.last() ? std::min(kLogitsRows, options.max_rows) : 0;
  AttentionWidths widths;
  int64_t n_ff = 0, gate_up = 0;  // the widest of any layer here
  for (int64_t layer = options.first_layer; layer < options.end_layer; ++layer) {
    const LayerConfig& parts = model.layers[layer];
    widths = Widest(widths, AttentionWidthsOf(parts.attention));
    if (!parts.mlp) continue;
    n_ff = std::max(n_ff, parts.mlp->n_ff);
    gate_up = std::max(gate_up, 2 * parts.mlp->n_ff + (parts.mlp->gated ? 1 : 0));
  }
  return {.residual = options.max_rows * model.n_embd * f32,
          .normed = options.max_rows * model.n_embd * act,
          .qkv = micro * widths.projected * f32,
          .query = micro * widths.query * act,
          .latent = micro * widths.latent * act,
          .attended = micro * widths.attended * act,
          .gate_up = micro * gate_up * f32,
          .hidden = micro * n_ff * act,
          .gathered = logits_rows * model.n_embd * f32,
          .logits = logits_rows * model.vocab_size * f32};
}

}  // namespace

// A step on its way: what every part of the forward pass needs.
struct Stage::StepState {
  const StageStep& step;
  const Deadline deadline;
  ActivationSource* const source;
  ActivationSink* const sink;
  const std::stop_token& stop;
  StageResult& result;
  StepTrace& trace;
  const StepContext experts;

  std::unique_ptr<DeviceBatch> batch;
  Tensor x, normed;                                         // all rows of the step
  int64_t rows_here = 0;                                    // of x: the first so many have come
  std::deque<std::pair<ActivationChunk, Event>> uploading;  // of them, those that the device may still read
  Stopwatch running;                                        // since the first row's arrival
  absl::Duration waited;                                    // for the previous stage, after that

  absl::Status Check() const {
    if (stop.stop_requested()) return Aborted("step %d was given up", step.step);
    if (deadline.Passed()) return DeadlineExceeded("step %d took longer than its timeout_seconds", step.step);
    return absl::OkStatus();
  }
};

// ------------------------------------------------------------------------------------------------------------ the forward pass

absl::Status Stage::Forward(StepState& state) {
  if (state.step.forget_experts) {
    RETURN_IF_ERROR(experts_->Forget(state.deadline));
    if (help_ != nullptr) RETURN_IF_ERROR(help_->Forget(state.deadline));
  }
  RETURN_IF_ERROR(experts_->BeginStep(state.experts, state.x.rows));
  for (int64_t layer = options_.first_layer; layer < options_.end_layer; ++layer) {
    for (int64_t row = 0; row < state.x.rows; row += options_.micro_batch_rows) {
      const int64_t num_rows = std::min(options_.micro_batch_rows, state.x.rows - row);
      if (layer == options_.first_layer) RETURN_IF_ERROR(EnsureRows(state, row + num_rows));
      const StepTrace::Scope span(state.trace, "attention", layer);
      RETURN_IF_ERROR(Attention(state, layer, row, num_rows));
    }
    RETURN_IF_ERROR(FeedForward(state, layer));
    GiveBackUploaded(state);
    RETURN_IF_ERROR(state.Check());
  }
  return options_.last() ? ReadLogits(state) : SendRows(state);
}

absl::Status Stage::Attention(StepState& state, int64_t layer, int64_t first_row, int64_t num_rows) {
  const ModelConfig& model = options_.model;
  const AttentionConfig& attention = model.layers[layer].attention;
  const LayerWeights& weights = weights_->layer(layer);
  const Tensor x = state.x.Rows(first_row, num_rows), normed = state.normed.Rows(first_row, num_rows);
  const Tensor attended(attended_.data(), ops_.activation_dtype(), num_rows, attention.out_size());

  RETURN_IF_ERROR(ops_.RmsNorm(x, weights.attention_norm, model.rms_epsilon, normed));
  RETURN_IF_ERROR(attention.delta()    ? GatedDelta(state, layer, first_row, normed, attended)
                  : attention.latent() ? LatentAttention(state, layer, first_row, normed, attended)
                                       : GroupedAttention(state, layer, first_row, normed, attended));
  return ops_.MatMul(attended, weights.attention_output.weight, weights.attention_output.bias, x, /*accumulate=*/true);
}

absl::Status Stage::GroupedAttention(StepState& state, int64_t layer, int64_t first_row, Tensor normed, Tensor attended) {
  const AttentionConfig& attention = options_.model.layers[layer].attention;
  const LayerWeights& weights = weights_->layer(layer);
  const KvLayer& kv = kv_->layer(layer);
  const Tensor qkv(qkv_.data(), DType::kF32, normed.rows, attention.q_size() + 2 * attention.kv_size());
  const Tensor query(query_.data(), ops_.activation_dtype(), normed.rows, attention.q_size());
  int64_t first_col = 0;
  for (const Projection& projection : weights.qkv) {
    const int64_t cols = projection.weight.layout.rows;
    RETURN_IF_ERROR(ops_.MatMul(normed, projection.weight, projection.bias, qkv.Cols(first_col, cols), /*accumulate=*/false));
    first_col += cols;
  }
  const HeadNorms norms = {.query = weights.query_norm, .key = weights.key_norm, .epsilon = options_.model.rms_epsilon};
  RETURN_IF_ERROR(ops_.RopeAndStore(*state.batch, first_row, attention.rope, norms, qkv, kv, query));
  const AttentionParams params = {.scale = attention.scale, .window = attention.window, .sinks = weights.sinks};
  RETURN_IF_ERROR(ops_.Attention(*state.batch, first_row, query, kv, params, attended));
  if (!attention.output_gate) return absl::OkStatus();
  const Tensor gate(qkv_.as<float>() + qkv.rows * qkv.cols, DType::kF32, qkv.rows, attention.q_size());
  RETURN_IF_ERROR(ops_.MatMul(normed, weights.output_gate, nullptr, gate, /*accumulate=*/false));
  return ops_.MultiplyBySigmoid(gate, attended);
}

absl::Status Stage::GatedDelta(StepState& state, int64_t layer, int64_t first_row, Tensor normed, Tensor attended) {
  const AttentionConfig& net = options_.model.layers[layer].attention;
  const DeltaLayerWeights& weights = weights_->layer(layer).delta;
  float* next = qkv_.as<float>();
  const auto project = [&](const TiledMatrix& weight, Tensor& out) {
    out = Tensor(next, DType::kF32, normed.rows, weight.layout.rows);
    next += out.rows * out.cols;
    return ops_.MatMul(normed, weight, nullptr, out, /*accumulate=*/false);
  };
  DeltaInputs inputs;
  RETURN_IF_ERROR(project(weights.mixed, inputs.mixed));
  RETURN_IF_ERROR(project(weights.gate, inputs.gate));
  RETURN_IF_ERROR(project(weights.beta, inputs.beta));
  RETURN_IF_ERROR(project(weights.alpha, inputs.alpha));
  const DeltaWeights vectors = {.conv = weights.conv,
                                .time_bias = weights.time_bias,
                                .decay = weights.decay,
                                .norm = weights.norm,
                                .epsilon = options_.model.rms_epsilon};
  return ops_.GatedDelta(*state.batch, first_row, net, inputs, vectors, kv_->states(layer), attended);
}

// Absorbed: what would make a head's keys and values from a token's latent is applied to the query and to the weighted sum of
// latents, so that the latents themselves are keys and values of all heads.
absl::Status Stage::LatentAttention(StepState& state, int64_t layer, int64_t first_row, Tensor normed, Tensor attended) {
  const AttentionConfig& attention = options_.model.layers[layer].attention;
  const LatentWeights& weights = weights_->layer(layer).latent;
  const KvLayer& kv = kv_->layer(layer);
  const int64_t rows = normed.rows, heads = attention.num_heads;
  const DType act = ops_.activation_dtype();
  float* const projected = qkv_.as<float>();
  const Tensor latent(projected, DType::kF32, rows, attention.latent_dim());
  const Tensor query_down(projected + rows * latent.cols, DType::kF32, rows, attention.q_rank);
  // Of activations: queries as they are made, what they are made from, what each head sums up of the latents.
  const int64_t row_bytes = rows * ElementBytes(act);
  std::byte* const parts = latent_.data();
  const Tensor query(parts, act, rows, attention.q_size());
  const Tensor query_down_normed(parts + row_bytes * query.cols, act, rows, attention.q_rank);
  const Tensor summed(parts + row_bytes * (query.cols + attention.q_rank), act, rows, heads * attention.kv_rank);
  const Tensor absorbed(query_.data(), act, rows, heads * attention.latent_dim());

  if (attention.q_rank > 0) {
    RETURN_IF_ERROR(ops_.MatMul(normed, weights.query_down, nullptr, query_down, /*accumulate=*/false));
    RETURN_IF_ERROR(ops_.RmsNorm(query_down, weights.query_norm, options_.model.rms_epsilon, query_down_normed));
  }
  const Tensor query_from = attention.q_rank > 0 ? query_down_normed : normed;
  RETURN_IF_ERROR(ops_.MatMul(query_from, weights.query, nullptr, query, /*accumulate=*/false));
  RETURN_IF_ERROR(ops_.MatMul(normed, weights.down, nullptr, latent, /*accumulate=*/false));
  const LatentNorm norm = {.weight = weights.norm, .epsilon = options_.model.rms_epsilon};
  RETURN_IF_ERROR(ops_.StoreLatent(*state.batch, first_row, attention.rope, norm, latent, kv, query, absorbed));
  RETURN_IF_ERROR(ops_.MatMulPerHead(query, weights.key_up, absorbed));
  RETURN_IF_ERROR(ops_.Attention(*state.batch, first_row, absorbed, kv, {.scale = attention.scale}, summed));
  return ops_.MatMulPerHead(summed, weights.value_up, attended);
}

absl::Status Stage::FeedForward(StepState& state, int64_t layer) {
  const LayerConfig& parts = options_.model.layers[layer];
  const LayerWeights& weights = weights_->layer(layer);
  RETURN_IF_ERROR(ops_.RmsNorm(state.x, weights.ffn_norm, options_.model.rms_epsilon, state.normed));
  if (parts.mlp) {
    const StepTrace::Scope span(state.trace, "mlp", layer);
    for (int64_t row = 0; row < state.x.rows; row += options_.micro_batch_rows) {
      const int64_t num_rows = std::min(options_.micro_batch_rows, state.x.rows - row);
      RETURN_IF_ERROR(Mlp(*parts.mlp, weights, state.normed.Rows(row, num_rows), state.x.Rows(row, num_rows)));
    }
  }
  if (!parts.experts) return absl::OkStatus();
  return experts_->Run(state.experts, layer, weights.router, state.normed, state.x);
}

absl::Status Stage::Mlp(const MlpConfig& mlp, const LayerWeights& weights, Tensor in, Tensor x) {
  const Tensor gate_up(gate_up_.data(), DType::kF32, in.rows, 2 * mlp.n_ff);
  const Tensor gate = gate_up.Cols(0, mlp.n_ff), up = gate_up.Cols(mlp.n_ff, mlp.n_ff);
  const Tensor hidden(hidden_.data(), ops_.activation_dtype(), in.rows, mlp.n_ff);
  RETURN_IF_ERROR(ops_.MatMul(in, weights.mlp_gate, nullptr, gate, /*accumulate=*/false));
  RETURN_IF_ERROR(ops_.MatMul(in, weights.mlp_up, nullptr, up, /*accumulate=*/false));
  RETURN_IF_ERROR(ops_.Glu(gate, up, mlp.glu, hidden));
  if (mlp.gated) {  // before the last product, which is linear
    const Tensor output_gate(gate_up_.as<float>() + gate_up.rows * gate_up.cols, DType::kF32, in.rows, 1);
    RETURN_IF_ERROR(ops_.MatMul(in, weights.mlp_output_gate, nullptr, output_gate, /*accumulate=*/false));
    RETURN_IF_ERROR(ops_.MultiplyBySigmoid(output_gate, hidden));
  }
  return ops_.MatMul(hidden, weights.mlp_down, nullptr, x, /*accumulate=*/true);
}

// The rows of x below end_row: embedded, or received from the previous stage.
absl::Status Stage::EnsureRows(StepState& state, int64_t end_row) {
  if (options_.first()) {
    if (state.rows_here == 0) state.running.Restart();
    const int64_t num_rows = end_row - state.rows_here;
    RETURN_IF_ERROR(ops_.Embed(*state.batch, state.rows_here, weights_->embedding(), state.x.Rows(state.rows_here, num_rows)));
    state.rows_here = end_row;
    return absl::OkStatus();
  }
  const StepTrace::Scope span(state.trace, "receive rows", -1);
  while (state.rows_here < end_row) {
    const Stopwatch waiting;
    ASSIGN_OR_RETURN(ActivationChunk chunk, NextChunk(state));
    if (state.rows_here == 0) {
      state.running.Restart();
    } else {
      state.waited += waiting.Elapsed();
    }
    const int64_t num_rows = NumRowsOf(chunk, state.x.cols);
    if (num_rows > state.x.rows - state.rows_here) {
      return InvalidArgument("%d hidden states came from row %d on, want at most %d", num_rows, state.rows_here,
                             state.x.rows - state.rows_here);
    }
    const Tensor rows = state.x.Rows(state.rows_here, num_rows);
    ASSIGN_OR_RETURN(Event here, TakeDeviceRows(ops_, *state.source, chunk, rows, state.deadline));
    state.uploading.emplace_back(std::move(chunk), std::move(here));
    state.rows_here += num_rows;
  }
  return absl::OkStatus();
}

// While the previous stage computes, this one's link is free for its experts. Memory that has been read is given back meanwhile,
// since the previous stage may be waiting for it. When nothing is left to copy, this device helps the previous ones.
absl::StatusOr<ActivationChunk> Stage::NextChunk(StepState& state) {
  const bool may_help = helps() && state.x.rows > kMaxRowsWithoutPlan;
  const absl::Cleanup busy = [&] {
    if (!may_help) return;
    boards_->own().SetAvailable(false);
    boards_->own().ExpectAvailable(absl::InfiniteDuration());
  };
  while (true) {
    ASSIGN_OR_RETURN(const bool copying, experts_->CopyWhileWaiting(state.experts));
    if (may_help && copying) boards_->own().ExpectAvailable(experts_->WaitingCopiesLeft());
    GiveBackUploaded(state);
    if (may_help && !copying && state.uploading.empty()) {
      absl::StatusOr<ActivationChunk> chunk =
          state.source->Next(state.step.step, state.rows_here, Deadline::In(absl::ZeroDuration()));
      if (!absl::IsDeadlineExceeded(chunk.status())) return chunk;
      RETURN_IF_ERROR(state.Check());
      HelpUntil(Deadline::In(kLookAtRows), &state.trace);
      continue;
    }
    const bool look = copying || !state.uploading.empty();
    const Deadline until = look ? std::min(state.deadline, Deadline::In(kLookAtCopies)) : state.deadline;
    absl::StatusOr<ActivationChunk> chunk = state.source->Next(state.step.step, state.rows_here, until);
    if (until == state.deadline || !absl::IsDeadlineExceeded(chunk.status())) return chunk;
    RETURN_IF_ERROR(state.Check());
  }
}

// Offers help until `until` has passed or another worker has taken it.
void Stage::HelpUntil(Deadline until, StepTrace* trace) {
  HelpBoard& own = boards_->own();
  const uint32_t seen = own.bell();
  own.SetAvailable(true);
  if (!boards_->Called()) own.WaitForBell(seen, until);
  if (boards_->Called()) ServeHelp(trace);
}

void Stage::ServeHelp(StepTrace* trace) {
  boards_->own().SetAvailable(false);
  if (help_ == nullptr) return boards_->Hear();
  const Tensor in(normed_.data(), ops_.activation_dtype(), options_.max_rows, options_.model.n_embd);
  help_->Serve(*boards_, {.in = in, .contributions = experts_->IdleContributions()}, trace);
}

void Stage::SetBoards(std::shared_ptr<HelpBoards> boards) {
  boards_ = std::move(boards);
  experts_->SetBoards(boards_);
}

void Stage::GiveBackUploaded(StepState& state) {
  while (!state.uploading.empty() && ops_.Passed(state.uploading.front().second)) state.uploading.pop_front();
}

absl::Status Stage::SendRows(StepState& state) {
  const StepTrace::Scope span(state.trace, "send rows", -1);
  return SendDeviceRows(ops_, *state.sink, state.step.step, state.x, state.deadline);
}

// Only the rows whose logits are wanted go through the output matrix.
absl::Status Stage::ReadLogits(StepState& state) {
  const StepTrace::Scope span(state.trace, "logits", -1);
  const std::vector<WantedLogits>& wanted = state.step.logits;
  const int64_t rows_at_once = std::min(kLogitsRows, options_.max_rows);
  for (size_t first = 0; first < wanted.size(); first += rows_at_once) {
    const int64_t num_rows = std::min<int64_t>(rows_at_once, wanted.size() - first);
    std::vector<int32_t> rows;
    std::vector<LogitsRequest> requests;
    for (int64_t i = 0; i < num_rows; ++i) {
      rows.push_back(static_cast<int32_t>(wanted[first + i].row));
      requests.push_back({.top_n = wanted[first + i].top_n, .target = wanted[first + i].target});
    }
    const Tensor gathered(gathered_.data(), DType::kF32, num_rows, state.x.cols);
    const Tensor normed = state.normed.Rows(0, num_rows);
    const Tensor logits(logits_.data(), DType::kF32, num_rows, options_.model.vocab_size);
    RETURN_IF_ERROR(ops_.GatherRows(state.x, rows, gathered));
    RETURN_IF_ERROR(ops_.RmsNorm(gathered, weights_->output_norm(), options_.model.rms_epsilon, normed));
    RETURN_IF_ERROR(ops_.MatMul(normed, weights_->output(), nullptr, logits, /*accumulate=*/false));
    ASSIGN_OR_RETURN(std::vector<LogitsResult> results, ops_.ReadLogits(logits, requests));
    std::move(results.begin(), results.end(), std::back_inserter(state.result.logits));
    RETURN_IF_ERROR(state.Check());
  }
  // Without logits nothing above waited for the device, and the step is over only when its computation is.
  return wanted.empty() ? ops_.Synchronize(state.deadline) : absl::OkStatus();
}

// --------------------------------------------------------------------------------------------------------------------- a step

Batch Stage::MakeBatch(const StageStep& step) const {
  Batch batch;
  for (const StageSequence& sequence : step.sequences) {
    batch.sequences.push_back({.first_row = sequence.first_row,
                               .num_rows = sequence.num_rows,
                               .first_position = sequence.first_position,
                               .blocks = sequence.blocks,
                               .ring_blocks = kv_->RingOf(sequence.slot),
                               .slot = sequence.slot});
    batch.token_ids.insert(batch.token_ids.end(), sequence.token_ids.begin(), sequence.token_ids.end());
  }
  return batch;
}

absl::Status Stage::MoveCaches(const StageStep& step, Deadline deadline) {
  for (const CacheMove& move : step.moves) {
    if (!state_positions_.empty()) {
      int64_t& kept = state_positions_[move.slot];
      if (move.kind == CacheMove::Kind::kSaveState && kept != move.position) {
        return FailedPrecondition("slot %d cannot save the state behind %d tokens: its state is another", move.slot,
                                  move.position);
      }
      if (move.kind == CacheMove::Kind::kLoadState) kept = move.position;
    }
  }
  return host_store_->Move(step.moves, deadline);
}

// Checks that each sequence begins anew or goes on where its slot's state is. Marks these states as unknown until KeepStates,
// since a step that fails may have changed them.
absl::Status Stage::TakeStates(const StageStep& step) {
  if (state_positions_.empty()) return absl::OkStatus();
  for (const StageSequence& sequence : step.sequences) {
    const int64_t kept = state_positions_[sequence.slot];
    if (sequence.first_position == 0 || sequence.first_position == kept) continue;
    return FailedPrecondition(
        "slot %d has %s, so its sequence cannot go on at token %d: the model keeps a state that only goes forward", sequence.slot,
        kept == kNoState ? std::string("no state") : absl::StrFormat("the state behind %d tokens", kept),
        sequence.first_position);
  }
  for (const StageSequence& sequence : step.sequences) state_positions_[sequence.slot] = kNoState;
  return absl::OkStatus();
}

void Stage::KeepStates(const StageStep& step) {
  if (state_positions_.empty()) return;
  for (const StageSequence& sequence : step.sequences) {
    state_positions_[sequence.slot] = sequence.first_position + sequence.num_rows;
  }
}

absl::StatusOr<StageResult> Stage::Run(const StageStep& step, Deadline deadline, ActivationSource* source, ActivationSink* sink,
                                       const std::stop_token& stop) {
  if (!options_.first() && source == nullptr) return FailedPrecondition("no previous worker is connected");
  if (!options_.last() && sink == nullptr) return FailedPrecondition("no next worker is connected");
  StageResult result;
  StepTrace trace(step.trace);
  const bool timed = step.trace || step.num_rows() >= kMinRowsToTime;
  const uint64_t computed_before = help_ == nullptr ? 0 : help_->num_computed();
  StepState state = {
      .step = step,
      .deadline = deadline,
      .source = source,
      .sink = sink,
      .stop = stop,
      .result = result,
      .trace = trace,
      .experts = {.step = step.step, .deadline = deadline, .counters = &result.experts, .trace = &trace},
      .batch = nullptr,
      .x = {residual_.data(), DType::kF32, step.num_rows(), options_.model.n_embd},
      .normed = {normed_.data(), ops_.activation_dtype(), step.num_rows(), options_.model.n_embd},
  };
  const auto run = [&]() -> absl::Status {
    RETURN_IF_ERROR(MoveCaches(step, deadline));
    RETURN_IF_ERROR(TakeStates(step));
    if (timed) RETURN_IF_ERROR(ops_.StartTimeline(deadline));
    ASSIGN_OR_RETURN(state.batch, ops_.PrepareBatch(MakeBatch(step)));
    RETURN_IF_ERROR(Forward(state));
    KeepStates(step);
    return absl::OkStatus();
  };
  const absl::Status status = run();
  if (!status.ok()) experts_->Recover();
  experts_->EndStep();  // its counters end with `result`
  const absl::StatusOr<std::vector<TimelineSpan>> timeline = ops_.TakeTimeline();
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(timeline.status());
  const absl::Duration took = state.running.Elapsed();
  result.seconds = absl::ToDoubleSeconds(took);
  result.busy_seconds = absl::ToDoubleSeconds(took - state.waited);
  result.experts.set_compute_seconds(result.busy_seconds);
  if (timed) CountTimeline(*timeline, result.busy_seconds, &result.experts);
  if (help_ != nullptr) result.experts.set_computed_for_others(help_->num_computed() - computed_before);
  trace.AddDevice(*timeline);
  result.spans = trace.Take();
  return result;
}

// ------------------------------------------------------------------------------------------------------------------- creation

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(Ops* ops, const StageOptions& options, DenseTensorSource& source,
                                                     ExpertLink* link) {
  if (options.first_layer < 0 || options.first_layer >= options.end_layer || options.end_layer > options.model.num_layers) {
    return InvalidArgument("layers %d to %d are not some of the model's %d", options.first_layer, options.end_layer,
                           options.model.num_layers);
  }
  if (options.max_rows < 1 || options.micro_batch_rows < 1) {
    return InvalidArgument("max_rows is %d and micro_batch_rows is %d, want at least 1", options.max_rows,
                           options.micro_batch_rows);
  }
  RETURN_IF_ERROR(ops->CheckModel(options.model));
  std::unique_ptr<Stage> stage(new Stage(ops, options, link));
  RETURN_IF_ERROR(stage->CheckMemory());
  ASSIGN_OR_RETURN(stage->weights_, StageWeights::Load(ops, options.model, options.first_layer, options.end_layer, source));
  RETURN_IF_ERROR(stage->Allocate());
  return stage;
}

absl::Status Stage::Allocate() {
  ASSIGN_OR_RETURN(kv_, KvCache::Create(&ops_, options_.model, options_.first_layer, options_.end_layer, options_.kv,
                                        std::min(options_.micro_batch_rows, options_.max_rows)));
  ASSIGN_OR_RETURN(host_store_,
                   KvHostStore::Create(&ops_, kv_.get(), options_.model, options_.first_layer, options_.end_layer, options_.kv));
  const auto layers = options_.model.layers.begin();
  const bool keeps_states = std::any_of(layers + options_.first_layer, layers + options_.end_layer,
                                        [](const LayerConfig& layer) { return layer.attention.delta(); });
  if (keeps_states) state_positions_.assign(options_.kv.num_slots, kNoState);
  const BufferSizes sizes = SizesOf(ops_, options_);
  ASSIGN_OR_RETURN(residual_, ops_.Allocate(sizes.residual));
  ASSIGN_OR_RETURN(normed_, ops_.Allocate(sizes.normed));
  ASSIGN_OR_RETURN(qkv_, ops_.Allocate(sizes.qkv));
  ASSIGN_OR_RETURN(query_, ops_.Allocate(sizes.query));
  ASSIGN_OR_RETURN(attended_, ops_.Allocate(sizes.attended));
  ASSIGN_OR_RETURN(latent_, ops_.Allocate(sizes.latent));
  ASSIGN_OR_RETURN(gate_up_, ops_.Allocate(sizes.gate_up));
  ASSIGN_OR_RETURN(hidden_, ops_.Allocate(sizes.hidden));
  if (options_.last()) {
    ASSIGN_OR_RETURN(gathered_, ops_.Allocate(sizes.gathered));
    ASSIGN_OR_RETURN(logits_, ops_.Allocate(sizes.logits));
  }
  PeerMemories* const peers = PeerMemoriesOf(ops_);
  if (const int64_t bytes = HelpBytesOf(ops_, options_); bytes > 0 && peers != nullptr) {
    absl::StatusOr<std::unique_ptr<PeerMemory>> memory = peers->Share(bytes);
    if (memory.ok()) {
      help_memory_ = *std::move(memory);
    } else {
      spdlog::info("workers help each other through the host's memory: {}", memory.status().ToString());
    }
  }
  ASSIGN_OR_RETURN(const NumSlots slots, NumExpertSlots());
  const int64_t num_slots = slots.own;
  if (num_slots > 0 || options_.experts.in_place) {
    for (int64_t layer = options_.first_layer; layer < options_.end_layer; ++layer) {
      if (const absl::Status taken = ops_.CheckExperts(options_.arena.layer(layer)); !taken.ok()) {
        return Annotate(taken, absl::StrFormat("tensors 'blk.%d.ffn_*_exps.weight' (%s leaves them to the CPU)", layer,
                                               num_slots > 0 ? "--vram-experts 0" : "--unified off --vram-experts 0"));
      }
    }
  }
  if (num_slots > 0) {
    ASSIGN_OR_RETURN(cache_,
                     ExpertCache::Create(&ops_, &link_, &options_.arena, options_.first_layer, options_.end_layer, num_slots));
  }
  ASSIGN_OR_RETURN(experts_, ExpertForward::Create(&ops_, &link_, cache_.get(),
                                                   {.model = options_.model,
                                                    .arena = options_.arena,
                                                    .first_layer = options_.first_layer,
                                                    .end_layer = options_.end_layer,
                                                    .max_rows = options_.max_rows,
                                                    .policy = options_.experts}));
  if (slots.help > 0) {
    ASSIGN_OR_RETURN(help_, HelpService::Create(&ops_, &link_, &options_.model, &options_.arena, slots.help,
                                                options_.max_rows * options_.model.router.top_k));
  }
  return absl::OkStatus();
}

int64_t Stage::HelpBytesOf(const Ops& ops, const StageOptions& options) {
  const ModelConfig& model = options.model;
  if (!options.may_help || ops.activation_dtype() == DType::kF32) return 0;  // the host's cores work in the host's memory
  return HelpBoards::DeviceBytes(
      HelpShapeFor(model.n_embd, options.max_rows, model.router.top_k, std::max<int64_t>(model.router.num_experts, 1)), ops);
}

int64_t Stage::BytesOf(const Ops& ops, const StageOptions& options) {
  return HelpBytesOf(ops, options) + KvCache::BytesOf(options.model, options.first_layer, options.end_layer, options.kv) +
         SizesOf(ops, options).total() + ExpertForward::BytesOf(ops, options.model, options.max_rows);
}

absl::Status Stage::CheckMemory() const {
  ASSIGN_OR_RETURN(const DeviceMemoryInfo memory, ops_.MemoryInfo());
  const int64_t own = BytesOf(ops_, options_);
  const int64_t slots = options_.expert_slots_auto ? 0 : options_.expert_slot_bytes;
  const int64_t needed = options_.dense_bytes + own + slots;
  if (needed <= memory.free_bytes) return absl::OkStatus();
  return ResourceExhausted(
      "layers %d to %d need %d bytes on %s, which has %d free: %d for dense weights, %d for expert slots (less with "
      "--vram-experts), %d for the KV cache and buffers (less with -c, -b, -ub or -ctk q8_0); or use more workers",
      options_.first_layer, options_.end_layer - 1, needed, ops_.name(), memory.free_bytes, options_.dense_bytes, slots, own);
}

// Everything else is allocated.
absl::StatusOr<Stage::NumSlots> Stage::NumExpertSlots() const {
  int64_t bytes = options_.expert_slot_bytes;
  if (options_.expert_slots_auto) {
    ASSIGN_OR_RETURN(const DeviceMemoryInfo memory, ops_.MemoryInfo());
    bytes = memory.free_bytes - std::max(kMinMemoryLeft, memory.total_bytes / 20);
  }
  const int64_t slots = ExpertCache::SlotsIn(bytes, options_.arena, options_.first_layer, options_.end_layer);
  if (!options_.may_help || slots == 0) return NumSlots{.own = slots};
  // A slot for others holds any record of the model.
  const int64_t help_bytes = ExpertCache::SlotBytes(options_.arena, 0, options_.model.num_layers);
  const int64_t own_bytes = ExpertCache::SlotBytes(options_.arena, options_.first_layer, options_.end_layer);
  const int64_t beside = std::max<int64_t>(0, bytes - slots * own_bytes) / help_bytes;  // once all own experts have a slot
  const int64_t help = std::min(kHelpSlots, std::max(beside, slots / kSlotsForAHelpSlot));
  if (help < HelpService::kMinSlots) return NumSlots{.own = slots};
  const int64_t own = std::max<int64_t>(0, bytes - help * help_bytes);
  return NumSlots{.own = ExpertCache::SlotsIn(own, options_.arena, options_.first_layer, options_.end_layer), .help = help};
}

absl::StatusOr<ExpertCache::Measurement> Stage::MeasureLink(absl::Duration time) {
  if (cache_ == nullptr) return ExpertCache::Measurement();
  return cache_->MeasureLink(time, Deadline::In(time + kLinkPatience));
}

absl::StatusOr<ExpertRates> Stage::MeasureExperts() {
  const int64_t layer = options_.arena.NextWithExperts(options_.first_layer, options_.end_layer);
  if (layer == options_.end_layer) return ExpertRates();
  const ExpertLayout& expert = options_.arena.layer(layer);
  // Enough rows and experts to fill a large GPU with work.
  const ExpertRatesOptions how = {.time = absl::Milliseconds(30), .many_rows = 128, .many_row_experts = 32};
  if (cache_ != nullptr) return ferry::MeasureExperts(ops_, expert, cache_->SlotMemory(), how);
  if (options_.experts.in_place) {
    std::vector<const std::byte*> records;
    for (int32_t e = 0; e < options_.arena.num_experts(); ++e) {
      ASSIGN_OR_RETURN(const std::span<const std::byte> record, link_.RecordInPlace({static_cast<int32_t>(layer), e}));
      ASSIGN_OR_RETURN(records.emplace_back(), ops_.AddressOfHost(record));
    }
    return ferry::MeasureExperts(ops_, expert, records, how);
  }
  // On the host's cores experts are the engine's, which the coordinator measures.
  if (ops_.activation_dtype() == DType::kF32) return ExpertRates();
  return MeasureExpertsOn(ops_, expert, how);
}

absl::StatusOr<int64_t> Stage::FillSlots(const std::function<bool(int64_t, int64_t)>& go_on) {
  if (cache_ == nullptr) return 0;
  std::vector<ExpertId> experts;
  for (int64_t layer = options_.first_layer; layer < options_.end_layer; ++layer) {
    if (!options_.arena.HasExperts(layer) || !experts_->ComputesHere(layer)) continue;
    for (int64_t expert = 0; expert < options_.arena.num_experts(); ++expert) {
      experts.push_back({static_cast<int32_t>(layer), static_cast<int32_t>(expert)});
    }
  }
  const int64_t all = static_cast<int64_t>(experts.size());
  if (all > cache_->num_slots()) return 0;
  RETURN_IF_ERROR(cache_->Fill(experts, kFillPatience, [&](int64_t done) { return go_on(done, all); }));
  return all;
}

StepLimits Stage::limits() const {
  return {.max_rows = options_.max_rows,
          .num_slots = options_.kv.num_slots,
          .num_blocks = options_.kv.num_blocks,
          .num_host_blocks = options_.kv.num_host_blocks,
          .num_host_states = options_.kv.num_host_states,
          .context_length = options_.model.context_length,
          .vocab_size = options_.model.vocab_size,
          .first_stage = options_.first()};
}

}  // namespace ferry
