#pragma once

// The gRPC service of cluster.proto. It translates and decides nothing.

#include <atomic>
#include <memory>

#include "coordinator/cluster/cluster_controller.h"
#include "coordinator/cluster/dense_tensor_stream.h"
#include "coordinator/cluster/expert_host_calls.h"
#include "coordinator/experts/expert_exchange.h"
#include "coordinator/experts/expert_messages.h"
#include "coordinator/experts/expert_record_stream.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/generation/task_pool.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

// Messages come in as bytes: who calls is checked before they are parsed, and they are bounded (coordinator/wire_bounds.h).
namespace cluster_service_internal {
using Cluster = internal::v1::Cluster;
using RawService = Cluster::WithRawCallbackMethod_Register<Cluster::WithRawCallbackMethod_StreamDenseTensors<
    Cluster::WithRawCallbackMethod_Heartbeat<Cluster::WithRawCallbackMethod_ListMembers<
        Cluster::WithRawCallbackMethod_PlanExperts<Cluster::WithRawCallbackMethod_FetchExperts<
            Cluster::WithRawCallbackMethod_ComputeExperts<Cluster::WithRawCallbackMethod_OfferExperts<
                Cluster::WithRawCallbackMethod_StreamExpertRecords<Cluster::Service>>>>>>>>>;
}  // namespace cluster_service_internal

class ClusterService final : public cluster_service_internal::RawService {
 public:
  // All borrowed. `pool` computes experts.
  ClusterService(ClusterController* controller, const GgufFile* file, const ModelConfig* model, TaskPool* pool)
      : controller_(*controller), file_(*file), model_(*model), pool_(*pool) {}

  // Answers expert requests from these from now on; before, with Unavailable.
  void Open(const ExpertStore* store, ExpertExchange* exchange, ExpertHostCalls* expert_hosts);

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  grpc::ServerUnaryReactor* Register(Context* context, const Bytes* message, Bytes* response) override;
  grpc::ServerWriteReactor<Bytes>* StreamDenseTensors(Context* context, const Bytes* message) override;
  grpc::ServerUnaryReactor* Heartbeat(Context* context, const Bytes* message, Bytes* response) override;
  grpc::ServerUnaryReactor* ListMembers(Context* context, const Bytes* message, Bytes* response) override;
  grpc::ServerUnaryReactor* PlanExperts(Context* context, const Bytes* message, Bytes* response) override;
  grpc::ServerWriteReactor<Bytes>* FetchExperts(Context* context, const Bytes* message) override;
  grpc::ServerUnaryReactor* ComputeExperts(Context* context, const Bytes* message, Bytes* response) override;
  grpc::ServerUnaryReactor* OfferExperts(Context* context, const Bytes* message, Bytes* response) override;
  grpc::ServerWriteReactor<Bytes>* StreamExpertRecords(Context* context, const Bytes* message) override;

 private:
  absl::StatusOr<ExpertRecordStream> RecordsFor(const Context& context, const Bytes& message);
  absl::Status Plan(const Context& context, const Bytes& message, Bytes* response);
  absl::Status Compute(ExpertExchange& exchange, const Bytes& message, Bytes* response);

  ClusterController& controller_;
  const GgufFile& file_;
  const ModelConfig& model_;
  TaskPool& pool_;
  SentChunks sent_chunks_;
  std::atomic<const ExpertStore*> store_{nullptr};
  std::atomic<ExpertExchange*> exchange_{nullptr};
  std::atomic<ExpertHostCalls*> expert_hosts_{nullptr};
};

}  // namespace ferry
