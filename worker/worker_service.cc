#include "worker/worker_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/escaped.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "proto/stream_metadata.h"
#include "worker/stage_link_grpc.h"

namespace ferry {
namespace {

constexpr absl::Duration kBeginEpochTimeout = absl::Seconds(9);  // when the caller names none; it waits 10 s
constexpr absl::Duration kConnectTimeout = absl::Seconds(4);
constexpr double kLongestProbeSeconds = 5;
constexpr uint64_t kMaxEpoch = uint64_t{1} << 32;             // far more than a cluster lives to see
constexpr int kMaxStepStreams = 4;                            // the epoch's, and those of earlier ones that have not ended yet
constexpr absl::Duration kProbePatience = absl::Seconds(10);  // beyond the probe's own time, when the caller names no deadline

// A worker whose GPU has to join the next one's waits as long as the epoch's begin allows.
absl::Duration ConnectTimeoutOf(const StageLinkOptions& links) {
  return links.transport == Transport::kNccl ? kBeginEpochTimeout : kConnectTimeout;
}

Deadline DeadlineOf(const grpc::ServerContext& context, absl::Duration otherwise) {
  return Deadline::In(std::min(absl::FromChrono(context.deadline()) - absl::Now(), otherwise));
}

absl::Status Take(ActivationQueue& queue, const grpc::ServerContext& context, internal::v1::Activations* message) {
  if (!message->error().empty()) return queue.PushFailure(message->epoch(), message->step(), message->error());
  if (message->announced()) {
    return queue.PushAnnouncement(message->epoch(), message->step(), message->first_row(), message->num_rows());
  }
  return queue.Push(message->epoch(), message->step(), message->first_row(), message->num_rows(),
                    std::move(*message->mutable_data()), [&context] { return context.IsCancelled(); });
}

// Answers of one RunSteps stream: written by the compute thread as they come, until the stream ends.
class AnswerWriter {
 public:
  explicit AnswerWriter(grpc::ServerReaderWriter<internal::v1::StepResponse, internal::v1::StepRequest>* stream)
      : stream_(stream) {}

  void Expect() {
    const std::lock_guard lock(mutex_);
    ++expected_;
  }
  void Write(const internal::v1::StepResponse& response) {
    const std::lock_guard lock(mutex_);
    if (stream_ != nullptr) stream_->Write(response);  // a write that fails shows in the reader's end
    --expected_;
    changed_.notify_all();
  }
  // The caller has sent its last step: the last answers still go out, unless it is gone.
  void Close(const grpc::ServerContext& context) {
    std::unique_lock lock(mutex_);
    while (expected_ > 0 && !context.IsCancelled()) changed_.wait_for(lock, std::chrono::milliseconds(100));
    stream_ = nullptr;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ServerReaderWriter<internal::v1::StepResponse, internal::v1::StepRequest>* stream_;
  int expected_ = 0;
};

}  // namespace

void WorkerService::Attach(StepRunner* runner, ActivationQueue* activations, const StageLinkOptions& links) {
  const std::lock_guard lock(mutex_);
  attached_ = {runner, activations, links};
  attached_.links.incarnation = incarnation_;
}

absl::StatusOr<WorkerService::Attached> WorkerService::Get() const {
  const std::lock_guard lock(mutex_);
  if (attached_.runner == nullptr) return FailedPrecondition("the worker is loading");
  return attached_;
}

absl::Status WorkerService::CheckIncarnation(uint64_t meant) const {
  if (meant == incarnation_.value()) return absl::OkStatus();
  return Aborted("incarnation is %d, want %d: another worker was meant", meant, incarnation_.value());
}

absl::Status WorkerService::CheckCoordinator(const grpc::ServerContext& context, uint64_t meant) const {
  const NodeCaller caller = CallerOf(context);
  if (caller != NodeCaller::kLocal && caller != NodeCaller::kCoordinator) {
    return absl::PermissionDeniedError("a worker takes this from its coordinator alone");
  }
  return CheckIncarnation(meant);
}

uint64_t WorkerService::IncarnationOf(const grpc::ServerContext& context) {
  const auto meant = context.client_metadata().find(kIncarnationKey);
  uint64_t value = 0;
  if (meant != context.client_metadata().end()) {
    const absl::string_view digits(meant->second.data(), meant->second.size());
    if (!absl::SimpleAtoi(digits, &value)) return 0;
  }
  return value;
}

grpc::Status WorkerService::BeginEpoch(grpc::ServerContext* context, const internal::v1::BeginEpochRequest* request,
                                       internal::v1::BeginEpochResponse* response) {
  const auto begin = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckCoordinator(*context, request->incarnation()));
    if (request->epoch() < 1 || request->epoch() > kMaxEpoch) {
      return InvalidArgument("epoch is %d, want 1 to %d", request->epoch(), kMaxEpoch);
    }
    const Deadline deadline = DeadlineOf(*context, kBeginEpochTimeout);
    // First, since a device that still takes part in the last epoch joins no other.
    RETURN_IF_ERROR(attached.runner->EndEpochBefore(request->epoch(), deadline));
    std::unique_ptr<ActivationSink> sink;
    if (!request->next_address().empty()) {
      const std::lock_guard lock(connecting_);
      ASSIGN_OR_RETURN(
          sink, next_.Connect(request->next_address(), Incarnation(request->next_incarnation()), request->epoch(), attached.links,
                              attached.runner, std::min(deadline, Deadline::In(ConnectTimeoutOf(attached.links)))));
    }
    RETURN_IF_ERROR(attached.runner->BeginEpoch(request->epoch(), std::move(sink), deadline));
    if (request->has_help() && attached.links.share_memory) {
      const absl::Status help =
          JoinHelp(request->epoch(), request->help(), attached, std::min(deadline, Deadline::In(kConnectTimeout)));
      if (!help.ok()) spdlog::warn("this worker and others of its host do not help each other: {}", help.ToString());
    }
    step_sharer_.Offer(attached.links.share_memory ? request->machine() : "", response);
    return absl::OkStatus();
  };
  const absl::Status begun = begin();
  spdlog::info("epoch {}: {}", request->epoch(), begun.ok() ? "begun" : Escaped(begun.ToString()));
  return ToGrpcStatus(begun);
}

absl::Status WorkerService::JoinHelp(uint64_t epoch, const internal::v1::HelpBoards& help, const Attached& attached,
                                     Deadline deadline) {
  const HelpBoards::Offer offer = {.socket = help.socket(),
                                   .key = help.key(),
                                   .workers = {help.workers().begin(), help.workers().end()},
                                   .self = help.self(),
                                   .shape = {.n_embd = attached.links.n_embd,
                                             .max_rows = static_cast<int64_t>(help.max_rows()),
                                             .max_entries = static_cast<int64_t>(help.max_entries()),
                                             .max_experts = attached.links.num_experts}};
  ASSIGN_OR_RETURN(std::shared_ptr<HelpBoards> boards, HelpBoards::Fetch(offer, attached.links.ops, deadline));
  return attached.runner->HelpOver(epoch, std::move(boards));
}

grpc::Status WorkerService::RunSteps(grpc::ServerContext* context,
                                     grpc::ServerReaderWriter<internal::v1::StepResponse, internal::v1::StepRequest>* stream) {
  const absl::StatusOr<Attached> attached = Get();
  if (!attached.ok()) return ToGrpcStatus(attached.status());
  if (const absl::Status allowed = CheckCoordinator(*context, IncarnationOf(*context)); !allowed.ok()) {
    return ToGrpcStatus(allowed);
  }
  const absl::Cleanup closed = [this] { --step_streams_; };
  if (++step_streams_ > kMaxStepStreams) {
    return ToGrpcStatus(ResourceExhausted("%d streams of steps are open", kMaxStepStreams));
  }
  const auto answers = std::make_shared<AnswerWriter>(stream);
  const auto key = context->client_metadata().find(kStepRingsKey);
  const bool has_key = key != context->client_metadata().end();
  const absl::StatusOr<std::unique_ptr<RingSteps>> through_rings =
      RingSteps::Start(step_sharer_.Take(has_key ? std::string(key->second.data(), key->second.size()) : ""), attached->runner);
  if (!through_rings.ok()) {
    end_(through_rings.status());  // otherwise each epoch that the coordinator begins here would fail
    return ToGrpcStatus(through_rings.status());
  }
  internal::v1::StepRequest request;
  while (stream->Read(&request)) {
    answers->Expect();
    attached->runner->Submit(std::move(request),
                             [answers](const internal::v1::StepResponse& response) { answers->Write(response); });
    request.Clear();
  }
  answers->Close(*context);
  return grpc::Status::OK;
}

grpc::Status WorkerService::PushActivations(grpc::ServerContext* context, grpc::ServerReader<internal::v1::Activations>* stream,
                                            internal::v1::PushActivationsResponse*) {
  const absl::StatusOr<Attached> attached = Get();
  if (!attached.ok()) return ToGrpcStatus(attached.status());
  if (CallerOf(*context) == NodeCaller::kStranger || IncarnationOf(*context) != incarnation_.value()) {
    return ToGrpcStatus(Aborted("these hidden states are meant for another worker"));
  }
  internal::v1::Activations message;
  uint64_t epoch = 0;
  while (stream->Read(&message)) {
    if (message.step() != 0) epoch = message.epoch();  // otherwise it measures, and ends before the epoch's steps begin
    const absl::Status taken = Take(*attached->activations, *context, &message);
    if (!taken.ok()) return ToGrpcStatus(taken);
  }
  // A new epoch begins here before it begins there, so a stream that ends first is cut off. If its worker died, the coordinator
  // notices as fast and knows better what to do: that the steps fail is said only if nobody ends the epoch.
  const Deadline until = Deadline::In(kCutOffPatience);
  while (epoch != 0 && attached->activations->epoch() == epoch && !until.Passed()) absl::SleepFor(absl::Milliseconds(20));
  if (epoch != 0) attached->activations->Break(epoch, "the worker before this one cannot be reached");
  return grpc::Status::OK;
}

absl::Status WorkerService::CheckNeighbour(const grpc::ServerContext& context, uint64_t meant) const {
  if (CallerOf(context) == NodeCaller::kStranger) return absl::PermissionDeniedError("another worker may ask this");
  return CheckIncarnation(meant);
}

grpc::Status WorkerService::ShareActivations(grpc::ServerContext* context, const internal::v1::ShareActivationsRequest* request,
                                             internal::v1::ShareActivationsResponse* response) {
  const auto share = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckNeighbour(*context, request->incarnation()));
    ASSIGN_OR_RETURN(*response, sharer_.Share(*request, attached.links, attached.runner));
    return absl::OkStatus();
  };
  return ToGrpcStatus(share());
}

grpc::Status WorkerService::ListenForActivations(grpc::ServerContext* context,
                                                 const internal::v1::ListenForActivationsRequest* request,
                                                 internal::v1::ListenForActivationsResponse* response) {
  const auto listen = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckNeighbour(*context, request->incarnation()));
    ASSIGN_OR_RETURN(*response, ListenForPrevious(*request, attached.links, attached.runner));
    return absl::OkStatus();
  };
  return ToGrpcStatus(listen());
}

grpc::Status WorkerService::TakeActivations(grpc::ServerContext* context, const internal::v1::TakeActivationsRequest* request,
                                            internal::v1::TakeActivationsResponse*) {
  const auto take = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckNeighbour(*context, request->incarnation()));
    return TakeFromPrevious(*request, attached.links, attached.runner, DeadlineOf(*context, kBeginEpochTimeout),
                            [context] { return context->IsCancelled(); });
  };
  return ToGrpcStatus(take());
}

grpc::Status WorkerService::JoinDevices(grpc::ServerContext* context, const internal::v1::JoinDevicesRequest* request,
                                        internal::v1::JoinDevicesResponse*) {
  const auto join = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckNeighbour(*context, request->incarnation()));
    return JoinPreviousDevice(*request, attached.links, attached.runner, DeadlineOf(*context, kBeginEpochTimeout),
                              [context] { return context->IsCancelled(); });
  };
  return ToGrpcStatus(join());
}

grpc::Status WorkerService::MeasureActivations(grpc::ServerContext* context,
                                               const internal::v1::MeasureActivationsRequest* request,
                                               internal::v1::MeasureActivationsResponse*) {
  const auto measure = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckNeighbour(*context, request->incarnation()));
    return TakeMeasurement(*request, attached.links, attached.runner, attached.activations);
  };
  return ToGrpcStatus(measure());
}

grpc::Status WorkerService::ProbeLink(grpc::ServerContext* context, const internal::v1::ProbeLinkRequest* request,
                                      internal::v1::ProbeLinkResponse* response) {
  const auto probe = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const Attached attached, Get());
    RETURN_IF_ERROR(CheckCoordinator(*context, request->incarnation()));
    if (!(request->seconds() > 0 && request->seconds() <= kLongestProbeSeconds)) {  // NaN fails as well
      return InvalidArgument("seconds is %g, want above 0 and at most %g", request->seconds(), kLongestProbeSeconds);
    }
    const absl::Duration time = absl::Seconds(request->seconds());
    ASSIGN_OR_RETURN(const ExpertCache::Measurement link,
                     attached.runner->MeasureLink(time, DeadlineOf(*context, time + kProbePatience)));
    response->set_bytes(static_cast<uint64_t>(link.bytes));
    response->set_seconds(link.seconds);
    return absl::OkStatus();
  };
  return ToGrpcStatus(probe());
}

grpc::Status WorkerService::Ping(grpc::ServerContext* context, const internal::v1::PingRequest* request,
                                 internal::v1::PingResponse*) {
  return ToGrpcStatus(CheckCoordinator(*context, request->incarnation()));
}

grpc::Status WorkerService::Shutdown(grpc::ServerContext* context, const internal::v1::ShutdownRequest*,
                                     internal::v1::ShutdownResponse*) {
  if (const absl::Status allowed = CheckCoordinator(*context, IncarnationOf(*context)); !allowed.ok()) {
    return ToGrpcStatus(allowed);
  }
  end_(absl::OkStatus());
  return grpc::Status::OK;
}

}  // namespace ferry
