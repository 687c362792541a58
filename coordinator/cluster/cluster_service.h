#pragma once

// The gRPC service of cluster.proto. It translates and decides nothing.

#include <atomic>
#include <memory>

#include "coordinator/cluster/cluster_controller.h"
#include "coordinator/cluster/dense_tensor_stream.h"
#include "coordinator/experts/expert_exchange.h"
#include "coordinator/experts/expert_store.h"
#include "coordinator/generation/task_pool.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"

namespace ferry {

class ClusterService final : public internal::v1::Cluster::CallbackService {
 public:
  // All borrowed. `pool` computes experts.
  ClusterService(ClusterController* controller, const GgufFile* file, const ModelConfig* model, TaskPool* pool)
      : controller_(*controller), file_(*file), model_(*model), pool_(*pool) {}

  // Answers expert requests from `store` and `exchange` from now on; before, with Unavailable.
  void Open(const ExpertStore* store, ExpertExchange* exchange);

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const internal::v1::RegisterRequest* request,
                                     internal::v1::RegisterResponse* response) override;
  grpc::ServerWriteReactor<internal::v1::TensorChunk>* StreamDenseTensors(
      grpc::CallbackServerContext* context, const internal::v1::StreamDenseTensorsRequest* request) override;
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context, const internal::v1::HeartbeatRequest* request,
                                      internal::v1::HeartbeatResponse* response) override;
  grpc::ServerUnaryReactor* ListMembers(grpc::CallbackServerContext* context, const internal::v1::ListMembersRequest* request,
                                        internal::v1::ListMembersResponse* response) override;
  grpc::ServerUnaryReactor* PlanExperts(grpc::CallbackServerContext* context, const internal::v1::ExpertRequest* request,
                                        internal::v1::ExpertPlan* response) override;
  grpc::ServerWriteReactor<internal::v1::ExpertRecordChunk>* FetchExperts(grpc::CallbackServerContext* context,
                                                                          const internal::v1::ExpertRequest* request) override;
  grpc::ServerUnaryReactor* ComputeExperts(grpc::CallbackServerContext* context,
                                           const internal::v1::ComputeExpertsRequest* request,
                                           internal::v1::ComputeExpertsResponse* response) override;

 private:
  ClusterController& controller_;
  const GgufFile& file_;
  const ModelConfig& model_;
  TaskPool& pool_;
  SentChunks sent_chunks_;
  std::atomic<const ExpertStore*> store_{nullptr};
  std::atomic<ExpertExchange*> exchange_{nullptr};
};

}  // namespace ferry
