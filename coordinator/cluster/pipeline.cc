#include "coordinator/cluster/pipeline.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/machine_id.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/message_ring.h"
#include "common/thread_limit.h"
#include "coordinator/cluster/step_answer.h"
#include "coordinator/raw_message.h"
#include "ferry/internal/v1/worker.grpc.pb.h"
#include "proto/expert_counters.h"
#include "proto/stream_metadata.h"

namespace ferry {
namespace {

constexpr char kRunSteps[] = "/ferry.internal.v1.Worker/RunSteps";
// A row of logits has five fields and a span six; a message holds 64 MiB of logits with an id each.
constexpr WireBounds kAnswerBounds = {.max_fields = 1 << 20, .max_packed_numbers = kMaxMessageBytes / sizeof(float)};
constexpr absl::Duration kRoomPatience = absl::Seconds(1);  // for a worker that takes no step from its ring

internal::v1::CacheMove ToProto(const CacheMove& move) {
  internal::v1::CacheMove out;
  switch (move.kind) {
    case CacheMove::Kind::kSaveBlock:
      out.set_kind(internal::v1::CacheMove::SAVE_BLOCK);
      break;
    case CacheMove::Kind::kLoadBlock:
      out.set_kind(internal::v1::CacheMove::LOAD_BLOCK);
      break;
    case CacheMove::Kind::kCopyBlock:
      out.set_kind(internal::v1::CacheMove::COPY_BLOCK);
      break;
    case CacheMove::Kind::kSaveState:
      out.set_kind(internal::v1::CacheMove::SAVE_STATE);
      break;
    case CacheMove::Kind::kLoadState:
      out.set_kind(internal::v1::CacheMove::LOAD_STATE);
      break;
  }
  out.set_block(move.block);
  out.set_from_block(move.from_block);
  out.set_host(move.host);
  out.set_slot(move.slot);
  out.set_position(static_cast<uint32_t>(move.position));
  return out;
}

class GrpcPipeline final : public Pipeline {
 public:
  GrpcPipeline(const PipelineOptions& options, const Clock* clock, OnFailed on_failed)
      : options_(options), clock_(*clock), on_failed_(std::move(on_failed)) {}

  ~GrpcPipeline() override {
    {
      const std::lock_guard lock(mutex_);
      failed_ = true;  // the streams' ends are nobody's news any more
    }
    for (const auto& stream : streams_) stream->Cancel();
    std::unique_lock lock(mutex_);
    // A cancelled call ends by itself, without its peer.
    all_ended_.wait(lock, [&] { return num_open_ == 0; });
  }

  absl::Status Open(PipelineFailure* failure) {
    const Deadline deadline = Deadline::In(options_.begin_timeout);
    std::vector<std::shared_ptr<grpc::Channel>> channels(options_.workers.size());
    std::vector<Rings> rings(options_.workers.size());
    for (size_t i = options_.workers.size(); i-- > 0;) {
      const PipelineWorker& worker = options_.workers[i];
      channels[i] = ConnectPeer(worker.address, NodeRole::kWorker, options_.identity, {});
      internal::v1::BeginEpochRequest request;
      request.set_epoch(options_.epoch);
      request.set_incarnation(worker.incarnation.value());
      request.set_machine(MachineId());
      if (i + 1 < options_.workers.size()) {
        request.set_next_address(options_.workers[i + 1].address);
        request.set_next_incarnation(options_.workers[i + 1].incarnation.value());
      }
      AddHelp(worker.id, &request);
      grpc::ClientContext context;
      context.set_deadline(RpcDeadline(deadline));
      internal::v1::BeginEpochResponse response;
      const absl::Status status =
          FromGrpcStatus(internal::v1::Worker::NewStub(channels[i])->BeginEpoch(&context, request, &response));
      if (!status.ok()) {
        // A worker that answers, but cannot reach its successor, is not the lost one.
        const bool answered = channels[i]->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY;
        *failure = {.status = Annotate(status, absl::StrFormat("worker %d did not begin the epoch", worker.id.value())),
                    .suspect = worker.id,
                    .incarnation = worker.incarnation,
                    .lost = !answered || absl::IsAborted(status) || absl::IsDeadlineExceeded(status)};
        return failure->status;
      }
      if (!response.socket().empty()) rings[i] = MapRings(response, deadline);
    }
    for (size_t i = 0; i < channels.size(); ++i) {
      streams_.push_back(std::make_unique<Stream>(this, i, std::move(channels[i]), std::move(rings[i])));
    }
    {
      const std::lock_guard lock(mutex_);
      num_open_ = static_cast<int>(streams_.size());
    }
    for (const auto& stream : streams_) stream->Start();
    return absl::OkStatus();
  }

  int max_steps_in_flight() const override {
    return options_.max_steps_in_flight > 0 ? options_.max_steps_in_flight : static_cast<int>(options_.workers.size());
  }

  double step_cost_rows() const override { return options_.step_cost_rows; }

  void Submit(StepPlan plan, Done done) override {
    std::vector<internal::v1::StepRequest> requests(streams_.size());
    {
      const std::lock_guard lock(mutex_);
      if (failed_) return;
      Pending pending{.step = ++last_step_, .begin = absl::Now(), .num_rows = plan.num_rows(), .done = std::move(done)};
      for (const PlannedSequence& sequence : plan.sequences) {
        for (const RowLogits& row : sequence.logits) pending.wanted.push_back(row.wanted);
      }
      if (pending_.empty()) oldest_since_ = clock_.Now();
      pending_.push_back(std::move(pending));
      if (options_.on_step) options_.on_step(last_step_, plan.num_rows());
      for (internal::v1::StepRequest& request : requests) {
        request.set_epoch(options_.epoch);
        request.set_step(last_step_);
        request.set_timeout_seconds(absl::ToDoubleSeconds(options_.step_timeout));
        request.set_forget_experts(plan.forget_experts);
        request.set_trace(options_.trace != nullptr);
        for (const CacheMove& move : plan.moves) *request.add_moves() = ToProto(move);
      }
    }
    for (const PlannedSequence& sequence : plan.sequences) {
      for (size_t i = 0; i < requests.size(); ++i) {
        internal::v1::StepSequence* const out = requests[i].add_sequences();
        out->set_slot(sequence.slot.value());
        out->set_first_position(static_cast<uint32_t>(sequence.first_position));
        out->set_num_tokens(static_cast<uint32_t>(sequence.token_ids.size()));
        out->mutable_blocks()->Add(sequence.blocks.begin(), sequence.blocks.end());
        if (i == 0) out->mutable_token_ids()->Add(sequence.token_ids.begin(), sequence.token_ids.end());
        if (i + 1 != requests.size()) continue;
        for (const RowLogits& row : sequence.logits) {
          internal::v1::LogitsWanted* const wanted = out->add_logits();
          wanted->set_offset(static_cast<uint32_t>(row.offset));
          wanted->set_top_n(row.wanted.top_n);
          if (row.wanted.target >= 0) wanted->set_target(row.wanted.target);
        }
      }
    }
    for (size_t i = 0; i < requests.size(); ++i) streams_[i]->Send(std::move(requests[i]));
  }

  void CheckTimeout() override {
    PipelineFailure failure;
    {
      const std::lock_guard lock(mutex_);
      if (failed_ || pending_.empty() || clock_.Now() - oldest_since_ <= options_.step_timeout) return;
      const auto late = std::find(pending_.front().answered.begin(), pending_.front().answered.end(), false);
      const size_t index = pending_.front().answered.empty() ? 0 : late - pending_.front().answered.begin();
      failure =
          FailureOf(index, DeadlineExceeded("step %d took longer than %.1f s; worker %d has not answered", pending_.front().step,
                                            absl::ToDoubleSeconds(options_.step_timeout), options_.workers[index].id.value()));
    }
    Fail(std::move(failure));
  }

 private:
  void AddHelp(WorkerId worker, internal::v1::BeginEpochRequest* request) const {
    const HelpOffer& offer = options_.help;
    const auto key = offer.keys.find(worker);
    if (key == offer.keys.end()) return;
    internal::v1::HelpBoards* const help = request->mutable_help();
    help->set_socket(offer.socket);
    help->set_key(key->second);
    for (const WorkerId other : offer.workers) help->add_workers(static_cast<uint32_t>(other.value()));
    help->set_self(static_cast<uint32_t>(worker.value()));
    help->set_max_rows(static_cast<uint64_t>(offer.shape.max_rows));
    help->set_max_entries(static_cast<uint64_t>(offer.shape.max_entries));
  }

  struct Pending {
    uint64_t step = 0;
    absl::Time begin;
    int64_t num_rows = 0;
    Done done;
    std::vector<LogitsRequest> wanted;
    std::vector<bool> answered;  // one a worker, once the first has
    StepOutcome outcome;
  };

  // To and from a worker of this host; null: it takes its steps from the stream.
  struct Rings {
    std::string key;
    std::unique_ptr<MessageRing> steps, answers;
  };
  static Rings MapRings(const internal::v1::BeginEpochResponse& offer, Deadline deadline) {
    const auto map = [&]() -> absl::StatusOr<Rings> {
      ASSIGN_OR_RETURN(std::vector<UniqueFd> descriptors, FetchDescriptors(offer.socket(), offer.key(), deadline));
      if (descriptors.size() != 2) return Internal("the worker handed out %d descriptors, want 2", descriptors.size());
      Rings rings{.key = offer.key()};
      ASSIGN_OR_RETURN(rings.steps, MessageRing::Map(descriptors[0].Release()));
      ASSIGN_OR_RETURN(rings.answers, MessageRing::Map(descriptors[1].Release()));
      return rings;
    };
    absl::StatusOr<Rings> rings = map();
    if (!rings.ok()) spdlog::warn("steps go to a worker of this host by messages: {}", rings.status().ToString());
    return rings.ok() ? *std::move(rings) : Rings();
  }

  // The stream to one worker. Created with the pipeline, destroyed after OnDone. Where there are rings, steps and answers go
  // through them, and the stream only says that the worker is there.
  // Answers come in as bytes, so that they are bounded before they are parsed.
  class Stream final : public grpc::ClientBidiReactor<internal::v1::StepRequest, grpc::ByteBuffer> {
   public:
    Stream(GrpcPipeline* pipeline, size_t index, std::shared_ptr<grpc::Channel> channel, Rings rings)
        : pipeline_(*pipeline), index_(index), stub_(std::move(channel)), rings_(std::move(rings)) {}
    ~Stream() override { StopReading(); }

    void Start() {
      if (rings_.steps != nullptr) {
        absl::StatusOr<std::thread> reading = StartThread([this] { ReadAnswers(); });
        if (reading.ok()) {
          reading_ = *std::move(reading);
        } else {
          spdlog::warn("steps go to a worker of this host by messages: {}", reading.status().ToString());
          rings_ = Rings();
        }
      }
      context_.AddMetadata(kIncarnationKey, std::to_string(pipeline_.options_.workers[index_].incarnation.value()));
      if (rings_.steps != nullptr) context_.AddMetadata(kStepRingsKey, rings_.key);
      stub_.PrepareBidiStreamingCall(&context_, kRunSteps, {}, this);
      AddHold();  // writes start outside of this class's callbacks
      StartRead(&answer_);
      StartCall();
    }
    void Cancel() {
      context_.TryCancel();
      StopReading();
      Release();
    }
    // Writes start under the lock. The hold is released under it too, and keeps the call alive until then.
    void Send(internal::v1::StepRequest request) {
      if (rings_.steps != nullptr) {
        const absl::Status sent = rings_.steps->Write(request.SerializeAsString(), Deadline::In(kRoomPatience));
        if (!sent.ok() && !absl::IsAborted(sent)) pipeline_.FailOver(index_, Annotate(sent, "a step could not be handed over"));
        return;
      }
      const std::lock_guard lock(mutex_);
      if (released_) return;
      queue_.push_back(std::move(request));
      if (!std::exchange(writing_, true)) StartWrite(&queue_.front());  // a deque does not move its elements
    }
    void OnWriteDone(bool ok) override {
      if (!ok) Release();
      const std::lock_guard lock(mutex_);
      queue_.pop_front();
      writing_ = !released_ && !queue_.empty();
      if (writing_) StartWrite(&queue_.front());
    }
    void OnReadDone(bool ok) override {
      if (ok && OnAnswer(answer_)) {
        StartRead(&answer_);
      } else {
        context_.TryCancel();
        Release();
      }
    }
    void OnDone(const grpc::Status& status) override { pipeline_.OnStreamEnd(index_, status); }

   private:
    void ReadAnswers() {
      while (true) {
        const absl::StatusOr<std::string> message = rings_.answers->Read(Deadline::Never());
        if (absl::IsAborted(message.status())) return;
        if (!message.ok()) {
          pipeline_.FailOver(index_, message.status());
          return;
        }
        if (!OnAnswer(std::string_view(*message))) return;
      }
    }
    // False: the stream is of no use any more.
    template <typename Bytes>
    bool OnAnswer(const Bytes& bytes) {
      internal::v1::StepResponse response;
      const absl::Status parsed = ParseBounded(bytes, kAnswerBounds, &response);
      if (!parsed.ok()) pipeline_.FailOver(index_, Internal("an answer is refused: %s", parsed.message()));
      return parsed.ok() && pipeline_.OnResponse(index_, response);
    }
    void StopReading() {
      if (!reading_.joinable()) return;
      rings_.steps->Abort();
      rings_.answers->Abort();
      reading_.join();
    }
    // Lets the call end after the running operations.
    void Release() {
      {
        const std::lock_guard lock(mutex_);
        if (std::exchange(released_, true)) return;
      }
      RemoveHold();  // outside: this may be the end of the stream, and of the lock
    }

    GrpcPipeline& pipeline_;
    const size_t index_;
    grpc::TemplatedGenericStub<internal::v1::StepRequest, grpc::ByteBuffer> stub_;
    Rings rings_;
    std::thread reading_;
    grpc::ClientContext context_;
    grpc::ByteBuffer answer_;
    std::mutex mutex_;
    std::deque<internal::v1::StepRequest> queue_;  // the front one is being written while writing_
    bool writing_ = false;
    bool released_ = false;
  };

  // False: the stream is of no use any more.
  bool OnResponse(size_t index, const internal::v1::StepResponse& response) {
    PipelineFailure failure = FailureOf(index, absl::OkStatus());
    std::vector<std::pair<Done, StepOutcome>> done;
    {
      const std::lock_guard lock(mutex_);
      if (failed_) return false;
      failure.status = TakeResponse(index, response);
      while (failure.status.ok() && !pending_.empty() && IsAnswered(pending_.front())) {
        if (options_.trace != nullptr) {
          options_.trace->AddStep(options_.epoch, pending_.front().step, pending_.front().num_rows, pending_.front().begin,
                                  absl::Now());
        }
        done.emplace_back(std::move(pending_.front().done), std::move(pending_.front().outcome));
        pending_.pop_front();
        oldest_since_ = clock_.Now();
      }
    }
    for (auto& [call, outcome] : done) call(std::move(outcome));
    if (failure.status.ok()) return true;
    Fail(std::move(failure));
    return false;
  }

  bool IsAnswered(const Pending& pending) const {
    return pending.answered.size() == streams_.size() &&
           std::find(pending.answered.begin(), pending.answered.end(), false) == pending.answered.end();
  }

  absl::Status TakeResponse(size_t index, const internal::v1::StepResponse& response) {
    Pending* next = nullptr;  // the oldest step this worker has not answered
    for (Pending& pending : pending_) {
      if (pending.answered.empty()) pending.answered.resize(streams_.size(), false);
      if (!pending.answered[index]) {
        next = &pending;
        break;
      }
    }
    if (next == nullptr) {
      return Internal("worker %d answered for step %d, and none is under way", options_.workers[index].id.value(),
                      response.step());
    }
    const bool is_last = index + 1 == streams_.size();
    StepExpectation expected = {.worker = options_.workers[index].id,
                                .epoch = options_.epoch,
                                .step = next->step,
                                .wanted = {},
                                .vocab_size = options_.vocab_size};
    if (is_last) expected.wanted = next->wanted;
    ASSIGN_OR_RETURN(std::vector<LogitsResult> logits, CheckStepResponse(response, expected));
    if (is_last) next->outcome.logits = std::move(logits);
    if (options_.trace != nullptr) options_.trace->AddWorker(options_.workers[index].id, response.spans());
    next->answered[index] = true;
    AddCounters(response.experts(), &next->outcome.experts);
    if (options_.on_computed) options_.on_computed(options_.workers[index].id, next->num_rows, response.experts());
    return absl::OkStatus();
  }

  void OnStreamEnd(size_t index, const grpc::Status& grpc_status) {
    const absl::Status status = FromGrpcStatus(grpc_status);
    const int32_t worker = options_.workers[index].id.value();
    // What a worker says in its own words (Aborted, Internal, ...) is not the loss of it; everything else is.
    const bool lost = status.ok() || absl::IsUnavailable(status) || absl::IsCancelled(status) || absl::IsUnknown(status);
    PipelineFailure failure =
        FailureOf(index, Unavailable("worker %d is lost: its stream ended (%s)", worker, status.ToString()));
    failure.lost = lost;
    if (!lost) failure.status = Annotate(status, absl::StrFormat("worker %d ended its stream", worker));
    Fail(std::move(failure));
    const std::lock_guard lock(mutex_);
    if (--num_open_ == 0) all_ended_.notify_all();
  }

  PipelineFailure FailureOf(size_t index, const absl::Status& status) const {
    const PipelineWorker& worker = options_.workers[index];
    return {.status = status, .suspect = worker.id, .incarnation = worker.incarnation, .lost = false};
  }

  // The rings to a worker are of no use any more.
  void FailOver(size_t index, const absl::Status& status) {
    Fail(FailureOf(index, Annotate(status, absl::StrFormat("worker %d", options_.workers[index].id.value()))));
  }

  void Fail(PipelineFailure failure) {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(failed_, true)) return;
    }
    on_failed_(std::move(failure));
  }

  const PipelineOptions options_;
  const Clock& clock_;
  const OnFailed on_failed_;
  std::vector<std::unique_ptr<Stream>> streams_;  // constant after Open

  std::mutex mutex_;
  std::condition_variable all_ended_;
  bool failed_ = false;
  int num_open_ = 0;
  uint64_t last_step_ = 0;
  absl::Time oldest_since_;  // when the oldest pending step became the oldest
  std::deque<Pending> pending_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Pipeline>> Pipeline::Begin(const PipelineOptions& options, const Clock* clock, OnFailed on_failed,
                                                          PipelineFailure* failure) {
  auto pipeline = std::make_unique<GrpcPipeline>(options, clock, std::move(on_failed));
  RETURN_IF_ERROR(pipeline->Open(failure));
  return pipeline;
}

absl::Status ShutdownWorker(const PipelineWorker& worker, const NodeIdentity* identity, absl::Duration timeout) {
  const std::unique_ptr<internal::v1::Worker::Stub> stub =
      internal::v1::Worker::NewStub(ConnectPeer(worker.address, NodeRole::kWorker, identity, {}));
  grpc::ClientContext context;
  context.set_deadline(RpcDeadline(timeout));
  context.AddMetadata(kIncarnationKey, std::to_string(worker.incarnation.value()));
  const internal::v1::ShutdownRequest request;
  internal::v1::ShutdownResponse response;
  return FromGrpcStatus(stub->Shutdown(&context, request, &response));
}

}  // namespace ferry
