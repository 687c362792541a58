#pragma once

// A small random model in memory, an expert link that needs no other process, and stages chained in one thread: what the tests
// of the worker run on.

#include <algorithm>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/gguf/gguf.h"
#include "common/model/make_model.h"
#include "common/model/model_tensors.h"
#include "coordinator/experts/expert_store.h"
#include "tests/testing/random_tensors.h"
#include "tests/testing/status_matchers.h"
#include "worker/stage.h"

namespace ferry {

// Weights, and the experts as the coordinator would hold them. Only ever const after Make.
struct TinyModel {
  std::vector<std::byte> bytes;
  std::unique_ptr<GgufFile> file;
  ModelConfig config;
  ArenaLayout layout;
  AlignedBytes arena{0};

  static MakeModelOptions Options() {
    return {.layers = 4, .experts = 8, .top_k = 2, .sliding_window = 40, .router_bias_spread = 1};
  }
  static std::unique_ptr<TinyModel> Make(const MakeModelOptions& options = Options()) {
    auto model = std::make_unique<TinyModel>();
    model->bytes = MakeModelBytes(options).value();
    model->file = std::make_unique<GgufFile>(GgufFile::Parse(model->bytes).value());
    model->FillArena();
    return model;
  }
  // A model that is not random.
  static std::unique_ptr<TinyModel> Open(const std::string& path) {
    auto model = std::make_unique<TinyModel>();
    model->file = std::make_unique<GgufFile>(GgufFile::Open(path).value());
    model->FillArena();
    return model;
  }

  std::span<const std::byte> Record(int64_t layer, int64_t expert) const {
    return layout.RecordIn(arena.span(), layer, expert).value();
  }

 private:
  void FillArena() {
    config = ModelConfig::FromGguf(*file).value();
    layout = ArenaLayoutOf(*file, config).value();
    arena = AlignedBytes(layout.bytes());
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      if (!config.layers[layer].experts) continue;
      const ExpertTensors tensors = ExpertTensorsOf(config, *file, layer).value();
      const ExpertLayout& records = layout.layer(layer);
      for (int64_t expert = 0; expert < layout.num_experts(); ++expert) {
        const int64_t offset = layout.OffsetOf(layer, expert).value();
        EXPECT_OK(FillExpertRecord(tensors, records, expert, arena.span().subspan(offset, records.bytes)));
      }
    }
  }
};

// The model that most tests share, made when the first of them asks.
inline const TinyModel& Model() {
  static const auto* const model = TinyModel::Make().release();
  return *model;
}

// The dense tensors of a layer range out of the model, in chunks of a few rows. `change` may spoil a chunk.
class FileTensorSource final : public DenseTensorSource {
 public:
  FileTensorSource(const TinyModel& model, int64_t first_layer, int64_t end_layer, int64_t rows_at_once = 24)
      : model_(model), tensors_(DenseTensorsOf(model.config, first_layer, end_layer)), rows_at_once_(rows_at_once) {}

  std::function<void(DenseChunk&)> change;

  absl::StatusOr<std::optional<DenseChunk>> Next() override {
    if (index_ == tensors_.size()) return std::nullopt;
    const DenseTensor& tensor = tensors_[index_];
    ASSIGN_OR_RETURN(const TensorInfo* const info, FindDense(model_.config, *model_.file, tensor));
    const int64_t num_rows = std::min(rows_at_once_, tensor.rows - row_);
    const int64_t row_bytes = static_cast<int64_t>(info->bytes()) / tensor.rows;
    DenseChunk chunk = {.name = tensor.name,
                        .dtype = info->dtype,
                        .rows = tensor.rows,
                        .cols = tensor.cols,
                        .first_row = row_,
                        .num_rows = num_rows,
                        .data = info->data.subspan(row_ * row_bytes, num_rows * row_bytes)};
    row_ += num_rows;
    if (row_ == tensor.rows) ++index_, row_ = 0;
    if (change) change(chunk);
    return chunk;
  }

 private:
  const TinyModel& model_;
  const std::vector<DenseTensor> tensors_;
  const int64_t rows_at_once_;
  size_t index_ = 0;
  int64_t row_ = 0;
};

inline std::unique_ptr<Ops> MakeOps(const std::string& kind = "cpu") {
  return CreateOps({.kind = kind, .num_threads = 1, .pin_threads = false}).value();
}

// An expert link inside the process. Counts what it is asked, and fails or delays on demand.
class FakeLink final : public ExpertLink {
 public:
  FakeLink(const TinyModel* model, Ops* host_ops) : model_(*model), ops_(*host_ops) {}

  // Set before use.
  int64_t row_capacity = 1000, entry_capacity = 2000;
  int running_capacity = 1;
  bool answers_at_once = false;  // Answered() says so
  std::function<ExpertPlace(const ActivatedExpert&)> place = [](const ActivatedExpert& use) {
    return use.resident ? ExpertPlace::kResident : use.expert % 2 == 0 ? ExpertPlace::kShip : ExpertPlace::kHost;
  };
  std::function<void(int64_t layer)> on_plan;
  std::function<ExpertPlace(const ActivatedExpert&, uint32_t helpers)> place_among;  // instead of `place`, where it is set
  absl::Status fail_compute, fail_plan, fail_record;
  size_t max_records_here = 1000;  // like the buffers of a remote link: more come when some are released

  // What happened.
  int num_plans = 0, num_computes = 0, num_finished = 0, most_running = 0;
  std::map<ExpertId, int> computed;  // requests that named it
  std::vector<ExpertId> asked;       // records, in order
  std::set<ExpertId> held;           // asked for and not released

  std::string name() const override { return "fake"; }
  absl::StatusOr<std::vector<ExpertPlace>> Plan(uint64_t, int64_t layer, int64_t, std::span<const ActivatedExpert> uses,
                                                uint32_t helpers, Deadline) override {
    ++num_plans;
    if (on_plan) on_plan(layer);
    RETURN_IF_ERROR(fail_plan);
    std::vector<ExpertPlace> places;
    for (const ActivatedExpert& use : uses) places.push_back(place_among ? place_among(use, helpers) : place(use));
    return places;
  }

  int64_t max_rows() const override { return row_capacity; }
  int64_t max_entries() const override { return entry_capacity; }
  int max_running() const override { return running_capacity; }
  std::span<float> HostRows(int64_t num_rows) override {
    rows_.resize(num_rows * model_.config.n_embd);
    return rows_;
  }
  absl::Status StartCompute(const HostRequest& request) override {
    if (static_cast<int>(answers_.size()) == running_capacity) return FailedPrecondition("%d computations run", running_capacity);
    if (request.num_rows > row_capacity || static_cast<int64_t>(request.entry_rows.size()) > entry_capacity) {
      return ResourceExhausted("more than the link takes");
    }
    ++num_computes;
    std::fill(contributions_.begin(), contributions_.end(), std::numeric_limits<float>::quiet_NaN());  // of the last answer
    for (const ActivatedExpert& use : request.uses) ++computed[{request.layer, use.expert}];
    answers_.emplace_back();
    most_running = std::max(most_running, static_cast<int>(answers_.size()));
    return ComputeOnHost(request, &answers_.back());
  }
  absl::StatusOr<std::span<const float>> FinishCompute(Deadline) override {
    if (answers_.empty()) return FailedPrecondition("no computation is running");
    contributions_ = std::move(answers_.front());
    answers_.pop_front();
    ++num_finished;
    RETURN_IF_ERROR(fail_compute);
    return contributions_;
  }
  bool Answered() const override { return answers_at_once && !answers_.empty(); }

  absl::StatusOr<std::span<const std::byte>> RecordInPlace(ExpertId id) const override {
    return model_.Record(id.layer, id.expert);
  }

  absl::Status AskRecord(uint64_t, ExpertId id) override {
    asked.push_back(id);
    held.insert(id);
    waiting_.push_back(id);
    return absl::OkStatus();
  }
  bool RecordHere(ExpertId id) override {
    Arrive();
    return here_.contains(id);
  }
  absl::StatusOr<std::span<const std::byte>> WaitRecord(ExpertId id, Deadline) override {
    if (!RecordHere(id)) return DeadlineExceeded("expert %d of layer %d does not come", id.expert, id.layer);
    RETURN_IF_ERROR(fail_record);
    return model_.Record(id.layer, id.expert);
  }
  void ReleaseRecord(ExpertId id) override {
    held.erase(id);
    here_.erase(id);
    std::erase(waiting_, id);
  }

 private:
  void Arrive() {
    while (!waiting_.empty() && here_.size() < max_records_here) {
      here_.insert(waiting_.front());
      waiting_.pop_front();
    }
  }
  absl::Status ComputeOnHost(const HostRequest& request, std::vector<float>* contributions) {
    const int64_t n_embd = model_.config.n_embd, entries = static_cast<int64_t>(request.entry_rows.size());
    contributions->assign(entries * n_embd, 0);
    std::vector<int32_t> offsets = {0}, outs(entries);
    std::vector<ExpertUse> uses;
    for (size_t i = 0; i < request.uses.size(); ++i) {
      offsets.push_back(offsets.back() + request.uses[i].tokens);
      uses.push_back({.record = model_.Record(request.layer, request.uses[i].expert).data(),
                      .group = static_cast<int32_t>(i),
                      .num_rows = request.uses[i].tokens});
    }
    for (int64_t i = 0; i < entries; ++i) outs[i] = static_cast<int32_t>(i);
    return ops_.ExpertMlp(model_.layout.layer(request.layer), uses,
                          {.num_groups = static_cast<int64_t>(uses.size()),
                           .num_entries = entries,
                           .offsets = offsets.data(),
                           .rows = request.entry_rows.data(),
                           .outs = outs.data()},
                          model_.config.expert.glu, Tensor(rows_.data(), DType::kF32, request.num_rows, n_embd),
                          Tensor(contributions->data(), DType::kF32, entries, n_embd));
  }

  const TinyModel& model_;
  Ops& ops_;
  std::vector<float> rows_, contributions_;
  std::deque<std::vector<float>> answers_;  // of the computations that run
  std::deque<ExpertId> waiting_;
  std::set<ExpertId> here_;
};

inline constexpr int64_t kTinySlots = 4;           // sequences
inline constexpr int64_t kTinyBlocksPerSlot = 16;  // 512 tokens

inline StageOptions TinyStageOptions(const TinyModel& model, int64_t first_layer, int64_t end_layer) {
  constexpr int64_t kMicroBatch = 24;
  return {.model = model.config,
          .arena = model.layout,
          .first_layer = first_layer,
          .end_layer = end_layer,
          .kv = {.key_type = DType::kF16,
                 .value_type = DType::kF16,
                 .num_blocks = kTinySlots * kTinyBlocksPerSlot,
                 .num_slots = kTinySlots,
                 .ring_blocks = (model.config.sliding_window() + kMicroBatch + kKvBlockTokens - 1) / kKvBlockTokens},
          .max_rows = 256,
          .micro_batch_rows = kMicroBatch};
}

// Hands on what another source gives once `come` says so.
class LateSource final : public ActivationSource {
 public:
  LateSource(ActivationSource* source, const std::function<bool()>* come) : source_(*source), come_(*come) {}
  absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, Deadline deadline) override {
    while (come_ && !come_()) {
      if (deadline.Passed()) return DeadlineExceeded("the rows are late");
      absl::SleepFor(absl::Microseconds(20));
    }
    return source_.Next(step, first_row, deadline);
  }
  void Abort() override { source_.Abort(); }

 private:
  ActivationSource& source_;
  const std::function<bool()>& come_;
};

// Stages over all layers of a model, chained in one thread.
class TinyPipeline {
 public:
  using Change = std::function<void(StageOptions&)>;

  TinyPipeline(const TinyModel* model, int num_stages, const Change& change = nullptr, const std::string& kind = "cpu")
      : model_(*model), ops_(MakeOps(kind)), host_ops_(MakeOps(kind)), link_(model, host_ops_.get()) {
    for (int i = 0; i < num_stages; ++i) {
      const int64_t first = model->config.num_layers * i / num_stages, end = model->config.num_layers * (i + 1) / num_stages;
      StageOptions options = TinyStageOptions(*model, first, end);
      if (change) change(options);
      FileTensorSource source(*model, first, end);
      stages_.push_back(Stage::Create(ops_.get(), options, source, &link_).value());
      queues_.push_back(std::make_unique<ActivationQueue>(model->config.n_embd, options.max_rows));
      queues_.back()->BeginEpoch(1);
      sources_.push_back(std::make_unique<LateSource>(queues_.back().get(), &rows_come));
    }
    for (int i = 0; i + 1 < num_stages; ++i) {
      sinks_.push_back(std::make_unique<LoopbackSink>(queues_[i + 1].get(), model->config.n_embd, 1));
    }
  }

  std::function<bool()> rows_come;  // later stages get rows when it says so; none: at once

  std::vector<CacheMove> moves;  // before the rows of the next step

  void Trace() { trace_ = true; }  // all steps from here on
  FakeLink& link() { return link_; }
  Stage& stage(int i) { return *stages_[i]; }

  // Some tokens of the sequence in `slot`, from `position` on; all logits of the last row are wanted.
  struct Rows {
    bool forget_experts = false;  // before the step
    int32_t slot = 0;
    int64_t position = 0;
    std::vector<int32_t> tokens;
  };
  // Interleaved, so that tables matter.
  static int32_t BlockOf(int32_t slot, int64_t block) { return static_cast<int32_t>(block * kTinySlots + slot); }
  // The logits of each sequence's last row.
  absl::StatusOr<std::vector<std::vector<float>>> Run(const std::vector<Rows>& sequences) {
    StageStep step = {
        .epoch = 1, .step = ++last_step_, .timeout = absl::Seconds(30), .moves = std::exchange(moves, {}), .trace = trace_};
    for (const Rows& rows : sequences) {
      step.forget_experts |= rows.forget_experts;
      StageSequence sequence = {.slot = rows.slot,
                                .first_row = step.num_rows(),
                                .num_rows = static_cast<int64_t>(rows.tokens.size()),
                                .first_position = rows.position,
                                .token_ids = rows.tokens};
      const int64_t end = rows.position + sequence.num_rows;
      for (int64_t block = 0; block * kKvBlockTokens < end; ++block) sequence.blocks.push_back(BlockOf(rows.slot, block));
      step.sequences.push_back(sequence);
      step.logits.push_back({.row = step.num_rows() - 1, .top_n = static_cast<int32_t>(model_.config.vocab_size)});
    }
    StageResult last;
    for (size_t i = 0; i < stages_.size(); ++i) {
      StageStep part = step;
      if (i > 0) {
        for (StageSequence& sequence : part.sequences) sequence.token_ids.clear();
      }
      ActivationSink* const sink = i < sinks_.size() ? sinks_[i].get() : nullptr;
      ASSIGN_OR_RETURN(last, stages_[i]->Run(part, Deadline::In(step.timeout), sources_[i].get(), sink, std::stop_token()));
      counters_.push_back(last.experts);
      spans_.insert(spans_.end(), last.spans.begin(), last.spans.end());
    }
    std::vector<std::vector<float>> logits;
    for (const LogitsResult& row : last.logits) logits.push_back(row.logits);
    return logits;
  }

  // The last logits of one prompt, in steps of at most `rows_a_step` rows.
  absl::StatusOr<std::vector<float>> Prompt(const std::vector<int32_t>& tokens, int64_t rows_a_step = 256, int32_t slot = 0) {
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens.size(); begin += rows_a_step) {
      const size_t end = std::min(tokens.size(), begin + rows_a_step);
      const std::vector<int32_t> part(tokens.begin() + begin, tokens.begin() + end);
      ASSIGN_OR_RETURN(auto rows, Run({{.slot = slot, .position = static_cast<int64_t>(begin), .tokens = part}}));
      logits = rows[0];
    }
    return logits;
  }

  // Of every stage's runs so far, one after the other.
  const std::vector<v1::ExpertCounters>& counters() const { return counters_; }
  const std::vector<TraceSpan>& spans() const { return spans_; }

 private:
  const TinyModel& model_;
  std::unique_ptr<Ops> ops_, host_ops_;
  FakeLink link_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::vector<std::unique_ptr<ActivationQueue>> queues_;
  std::vector<std::unique_ptr<LateSource>> sources_;
  std::vector<std::unique_ptr<LoopbackSink>> sinks_;
  std::vector<v1::ExpertCounters> counters_;
  std::vector<TraceSpan> spans_;
  bool trace_ = false;
  uint64_t last_step_ = 0;
};

inline std::vector<int32_t> Tokens(const TinyModel& model, int64_t count, uint64_t seed = 1) {
  std::vector<int32_t> tokens;
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    tokens.push_back(static_cast<int32_t>((state >> 33) % model.config.vocab_size));
  }
  return tokens;
}

}  // namespace ferry
