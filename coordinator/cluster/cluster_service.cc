#include "coordinator/cluster/cluster_service.h"

#include <functional>
#include <utility>
#include <vector>

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "coordinator/raw_message.h"

namespace ferry {
namespace {

// Streams what `next` makes, one message at a time.
template <typename Message>
class StreamWriter final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  using Next = std::function<absl::StatusOr<bool>(Message*)>;  // false: the end

  explicit StreamWriter(Next next) : next_(std::move(next)) { WriteNext(); }
  void OnWriteDone(bool ok) override {
    if (ok) {
      WriteNext();
    } else {
      this->Finish(grpc::Status::CANCELLED);
    }
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    const absl::StatusOr<bool> more = next_(&message_);
    const bool written = more.ok() && *more;
    const absl::Status status = written ? Serialize(message_, &bytes_) : more.status();
    if (written && status.ok()) {
      this->StartWrite(&bytes_);
    } else {
      this->Finish(ToGrpcStatus(status));
    }
  }

  const Next next_;
  Message message_;
  grpc::ByteBuffer bytes_;
};

grpc::ServerWriteReactor<grpc::ByteBuffer>* Refuse(const absl::Status& status) {
  return new StreamWriter<internal::v1::TensorChunk>(
      [status](internal::v1::TensorChunk*) -> absl::StatusOr<bool> { return status; });
}

// A caller of another host without a certificate may do nothing here.
absl::Status CheckCaller(const grpc::CallbackServerContext& context) {
  if (CallerOf(context) != NodeCaller::kStranger) return absl::OkStatus();
  return absl::UnauthenticatedError("this needs a certificate of the cluster: `ferry join` fetches one");
}

// What a worker says of itself has some thirty fields; an expert request has five for each expert of a layer.
constexpr WireBounds kClusterBounds = {.max_fields = 256, .max_packed_numbers = 256};
constexpr WireBounds kExpertFields = {.max_fields = 6 * kMaxExperts + 256, .max_packed_numbers = 256};

// The message of a caller that may send it.
template <typename Message>
absl::StatusOr<Message> Take(const grpc::CallbackServerContext& context, const grpc::ByteBuffer& bytes,
                             const WireBounds& bounds) {
  RETURN_IF_ERROR(CheckCaller(context));
  Message message;
  RETURN_IF_ERROR(ParseBounded(bytes, bounds, &message));
  return message;
}

absl::Status NotOpen() { return Unavailable("the coordinator is loading the experts"); }

}  // namespace

void ClusterService::Open(const ExpertStore* store, ExpertExchange* exchange, ExpertHostCalls* expert_hosts) {
  store_ = store;
  expert_hosts_ = expert_hosts;
  exchange_ = exchange;
}

grpc::ServerUnaryReactor* ClusterService::Register(Context* context, const Bytes* message, Bytes* response) {
  const auto answer = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto request, Take<internal::v1::RegisterRequest>(*context, *message, kClusterBounds));
    internal::v1::RegisterResponse assignment;
    RETURN_IF_ERROR(controller_.Register(request, &assignment));
    return Serialize(assignment, response);
  };
  return Finish(context, answer());
}

grpc::ServerUnaryReactor* ClusterService::Heartbeat(Context* context, const Bytes* message, Bytes* response) {
  const auto answer = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto request, Take<internal::v1::HeartbeatRequest>(*context, *message, kClusterBounds));
    internal::v1::HeartbeatResponse epoch;
    RETURN_IF_ERROR(controller_.Heartbeat(request, &epoch));
    return Serialize(epoch, response);
  };
  return Finish(context, answer());
}

grpc::ServerUnaryReactor* ClusterService::ListMembers(Context* context, const Bytes*, Bytes* response) {
  if (CallerOf(*context) != NodeCaller::kLocal) {
    return Finish(context, absl::PermissionDeniedError("only a process of the coordinator's host may ask this"));
  }
  internal::v1::ListMembersResponse members;
  controller_.ListMembers(&members);
  return Finish(context, Serialize(members, response));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ClusterService::StreamDenseTensors(Context* context, const Bytes* message) {
  const auto request = Take<internal::v1::StreamDenseTensorsRequest>(*context, *message, kClusterBounds);
  if (!request.ok()) return Refuse(request.status());
  const WorkerId worker(static_cast<int32_t>(request->worker_id()));
  const absl::StatusOr<LayerRange> layers = controller_.LayersOf(worker, Incarnation(request->incarnation()));
  if (!layers.ok()) return Refuse(layers.status());
  absl::StatusOr<DenseTensorStream> stream = DenseTensorStream::Create(&file_, &sent_chunks_, model_, layers->first, layers->end);
  if (!stream.ok()) {
    spdlog::error("worker {} is refused: {}", worker.value(), std::string(stream.status().message()));
    return Refuse(stream.status());
  }
  return new StreamWriter<internal::v1::TensorChunk>(
      [worker, stream = *std::move(stream)](internal::v1::TensorChunk* chunk) mutable {
        absl::StatusOr<bool> more = stream.Next(chunk);
        if (!more.ok()) spdlog::error("worker {} is refused: {}", worker.value(), std::string(more.status().message()));
        return more;
      });
}

absl::Status ClusterService::Plan(const Context& context, const Bytes& message, Bytes* response) {
  ASSIGN_OR_RETURN(const auto request, Take<internal::v1::ExpertRequest>(context, message, kExpertFields));
  ExpertExchange* const exchange = exchange_;
  if (exchange == nullptr) return NotOpen();
  ASSIGN_OR_RETURN(const ExpertRequest converted, ExpertRequestFromProto(request, ExpertRequestKind::kPlan));
  ASSIGN_OR_RETURN(const std::vector<ExpertPlace> places,
                   exchange->Plan(WorkerId(static_cast<int32_t>(request.worker_id())), converted));
  return Serialize(ToProto(places), response);
}

grpc::ServerUnaryReactor* ClusterService::PlanExperts(Context* context, const Bytes* message, Bytes* response) {
  return Finish(context, Plan(*context, *message, response));
}

absl::StatusOr<ExpertRecordStream> ClusterService::RecordsFor(const Context& context, const Bytes& message) {
  ASSIGN_OR_RETURN(const auto request, Take<internal::v1::ExpertRequest>(context, message, kExpertFields));
  ExpertExchange* const exchange = exchange_;
  if (exchange == nullptr) return NotOpen();
  ASSIGN_OR_RETURN(ExpertRequest converted, ExpertRequestFromProto(request, ExpertRequestKind::kPlan));
  RETURN_IF_ERROR(exchange->CheckFetch(WorkerId(static_cast<int32_t>(request.worker_id())), converted));
  return ExpertRecordStream(store_, std::move(converted));
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ClusterService::FetchExperts(Context* context, const Bytes* message) {
  absl::StatusOr<ExpertRecordStream> records = RecordsFor(*context, *message);
  if (!records.ok()) return Refuse(records.status());
  return new StreamWriter<internal::v1::ExpertRecordChunk>(
      [records = *std::move(records)](internal::v1::ExpertRecordChunk* chunk) mutable { return records.Next(chunk); });
}

absl::Status ClusterService::Compute(ExpertExchange& exchange, const Bytes& message, Bytes* response) {
  WireBounds bounds = kExpertFields;
  bounds.max_packed_numbers = MaxEntries(model_.n_embd);
  internal::v1::ComputeExpertsRequest request;
  RETURN_IF_ERROR(ParseBounded(message, bounds, &request));
  internal::v1::ComputeExpertsResponse answer;
  if (request.probe()) {
    answer.set_contributions(std::move(*request.mutable_rows()));
    return Serialize(answer, response);
  }
  ASSIGN_OR_RETURN(ComputeRequest compute, ComputeRequestFromProto(request, model_.n_embd));
  RETURN_IF_ERROR(exchange.Compute(WorkerId(static_cast<int32_t>(request.request().worker_id())), compute.request, compute.rows,
                                   compute.contributions));
  answer.set_contributions(compute.contributions.data(), compute.contributions.size() * sizeof(float));
  return Serialize(answer, response);
}

grpc::ServerUnaryReactor* ClusterService::ComputeExperts(Context* context, const Bytes* message, Bytes* response) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Finish(context, allowed);
  ExpertExchange* const exchange = exchange_;
  if (exchange == nullptr) return Finish(context, NotOpen());
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  pool_.Post(
      [this, exchange, reactor, message, response] { reactor->Finish(ToGrpcStatus(Compute(*exchange, *message, response))); });
  return reactor;
}

grpc::ServerUnaryReactor* ClusterService::OfferExperts(Context* context, const Bytes* message, Bytes* response) {
  const auto answer = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto request, Take<internal::v1::OfferExpertsRequest>(*context, *message, kClusterBounds));
    ExpertHostCalls* const hosts = expert_hosts_;
    if (hosts == nullptr) return NotOpen();
    internal::v1::OfferExpertsResponse place;
    RETURN_IF_ERROR(hosts->Offer(request, &place));
    return Serialize(place, response);
  };
  return Finish(context, answer());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ClusterService::StreamExpertRecords(Context* context, const Bytes* message) {
  const auto records_of = [&]() -> absl::StatusOr<ExpertRecordStream> {
    constexpr WireBounds kManyExperts = {.max_fields = kMaxExperts + 16, .max_packed_numbers = kMaxExperts};
    ASSIGN_OR_RETURN(const auto request, Take<internal::v1::StreamExpertRecordsRequest>(*context, *message, kManyExperts));
    ExpertHostCalls* const hosts = expert_hosts_;
    if (hosts == nullptr) return NotOpen();
    return hosts->Records(request);
  };
  absl::StatusOr<ExpertRecordStream> records = records_of();
  if (!records.ok()) return Refuse(records.status());
  return new StreamWriter<internal::v1::ExpertRecordChunk>(
      [records = *std::move(records)](internal::v1::ExpertRecordChunk* chunk) mutable { return records.Next(chunk); });
}

}  // namespace ferry
