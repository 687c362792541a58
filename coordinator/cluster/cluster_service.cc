#include "coordinator/cluster/cluster_service.h"

#include <functional>
#include <utility>

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/rpc/node_identity.h"
#include "coordinator/experts/expert_messages.h"

namespace ferry {
namespace {

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// Streams what `next` makes, one message at a time.
template <typename Message>
class StreamWriter final : public grpc::ServerWriteReactor<Message> {
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
    if (more.ok() && *more) {
      this->StartWrite(&message_);
    } else {
      this->Finish(ToGrpcStatus(more.status()));
    }
  }

  const Next next_;
  Message message_;
};

template <typename Message>
grpc::ServerWriteReactor<Message>* Refuse(const absl::Status& status) {
  return new StreamWriter<Message>([status](Message*) -> absl::StatusOr<bool> { return status; });
}

// A caller of another host without a certificate may do nothing here.
absl::Status CheckCaller(const grpc::CallbackServerContext& context) {
  if (CallerOf(context) != NodeCaller::kStranger) return absl::OkStatus();
  return absl::UnauthenticatedError("this needs a certificate of the cluster: `ferry join` fetches one");
}

absl::Status NotOpen() { return Unavailable("the coordinator is loading the experts"); }

}  // namespace

void ClusterService::Open(const ExpertStore* store, ExpertExchange* exchange) {
  store_ = store;
  exchange_ = exchange;
}

grpc::ServerUnaryReactor* ClusterService::Register(grpc::CallbackServerContext* context,
                                                   const internal::v1::RegisterRequest* request,
                                                   internal::v1::RegisterResponse* response) {
  const absl::Status allowed = CheckCaller(*context);
  return Finish(context, allowed.ok() ? controller_.Register(*request, response) : allowed);
}

grpc::ServerUnaryReactor* ClusterService::Heartbeat(grpc::CallbackServerContext* context,
                                                    const internal::v1::HeartbeatRequest* request,
                                                    internal::v1::HeartbeatResponse* response) {
  const absl::Status allowed = CheckCaller(*context);
  return Finish(context, allowed.ok() ? controller_.Heartbeat(*request, response) : allowed);
}

grpc::ServerUnaryReactor* ClusterService::ListMembers(grpc::CallbackServerContext* context,
                                                      const internal::v1::ListMembersRequest*,
                                                      internal::v1::ListMembersResponse* response) {
  if (CallerOf(*context) != NodeCaller::kLocal) {
    return Finish(context, absl::PermissionDeniedError("only a process of the coordinator's host may ask this"));
  }
  controller_.ListMembers(response);
  return Finish(context, absl::OkStatus());
}

grpc::ServerWriteReactor<internal::v1::TensorChunk>* ClusterService::StreamDenseTensors(
    grpc::CallbackServerContext* context, const internal::v1::StreamDenseTensorsRequest* request) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Refuse<internal::v1::TensorChunk>(allowed);
  const WorkerId worker(static_cast<int32_t>(request->worker_id()));
  const absl::StatusOr<LayerRange> layers = controller_.LayersOf(worker, Incarnation(request->incarnation()));
  if (!layers.ok()) return Refuse<internal::v1::TensorChunk>(layers.status());
  absl::StatusOr<DenseTensorStream> stream = DenseTensorStream::Create(&file_, &sent_chunks_, model_, layers->first, layers->end);
  if (!stream.ok()) {
    spdlog::error("worker {} is refused: {}", worker.value(), std::string(stream.status().message()));
    return Refuse<internal::v1::TensorChunk>(stream.status());
  }
  return new StreamWriter<internal::v1::TensorChunk>(
      [worker, stream = *std::move(stream)](internal::v1::TensorChunk* chunk) mutable {
        absl::StatusOr<bool> more = stream.Next(chunk);
        if (!more.ok()) spdlog::error("worker {} is refused: {}", worker.value(), std::string(more.status().message()));
        return more;
      });
}

grpc::ServerUnaryReactor* ClusterService::PlanExperts(grpc::CallbackServerContext* context,
                                                      const internal::v1::ExpertRequest* request,
                                                      internal::v1::ExpertPlan* response) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Finish(context, allowed);
  ExpertExchange* const exchange = exchange_;
  if (exchange == nullptr) return Finish(context, NotOpen());
  const absl::StatusOr<ExpertRequest> converted = ExpertRequestFromProto(*request, ExpertRequestKind::kPlan);
  if (!converted.ok()) return Finish(context, converted.status());
  const auto places = exchange->Plan(WorkerId(static_cast<int32_t>(request->worker_id())), *converted);
  if (places.ok()) *response = ToProto(*places);
  return Finish(context, places.status());
}

grpc::ServerWriteReactor<internal::v1::ExpertRecordChunk>* ClusterService::FetchExperts(
    grpc::CallbackServerContext* context, const internal::v1::ExpertRequest* request) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Refuse<internal::v1::ExpertRecordChunk>(allowed);
  ExpertExchange* const exchange = exchange_;
  if (exchange == nullptr) return Refuse<internal::v1::ExpertRecordChunk>(NotOpen());
  absl::StatusOr<ExpertRequest> converted = ExpertRequestFromProto(*request, ExpertRequestKind::kPlan);
  if (!converted.ok()) return Refuse<internal::v1::ExpertRecordChunk>(converted.status());
  const absl::Status checked = exchange->CheckFetch(WorkerId(static_cast<int32_t>(request->worker_id())), *converted);
  if (!checked.ok()) return Refuse<internal::v1::ExpertRecordChunk>(checked);
  return new StreamWriter<internal::v1::ExpertRecordChunk>(
      [records = ExpertRecordStream(store_, *std::move(converted))](internal::v1::ExpertRecordChunk* chunk) mutable {
        return records.Next(chunk);
      });
}

grpc::ServerUnaryReactor* ClusterService::ComputeExperts(grpc::CallbackServerContext* context,
                                                         const internal::v1::ComputeExpertsRequest* request,
                                                         internal::v1::ComputeExpertsResponse* response) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Finish(context, allowed);
  ExpertExchange* const exchange = exchange_;
  if (exchange == nullptr) return Finish(context, NotOpen());
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  pool_.Post([this, exchange, reactor, request, response] {
    absl::StatusOr<ComputeRequest> compute = ComputeRequestFromProto(*request, model_.n_embd);
    absl::Status status = compute.status();
    if (status.ok()) {
      status = exchange->Compute(WorkerId(static_cast<int32_t>(request->request().worker_id())), compute->request, compute->rows,
                                 compute->contributions);
    }
    if (status.ok()) {
      response->set_contributions(compute->contributions.data(), compute->contributions.size() * sizeof(float));
    }
    reactor->Finish(ToGrpcStatus(status));
  });
  return reactor;
}

}  // namespace ferry
