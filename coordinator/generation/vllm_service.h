#pragma once

// vllm_engine.proto over gRPC, for gateways that speak it: translates to ferry.v1 and decides nothing. Callers, bounds and queues
// are FerryService's.

#include "coordinator/generation/ferry_service.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"

namespace ferry {

namespace vllm = ::vllm::grpc::engine;

using RawVllmService = vllm::VllmEngine::WithRawCallbackMethod_Generate<vllm::VllmEngine::WithRawCallbackMethod_HealthCheck<
    vllm::VllmEngine::WithRawCallbackMethod_Abort<vllm::VllmEngine::WithRawCallbackMethod_GetModelInfo<
        vllm::VllmEngine::WithRawCallbackMethod_GetServerInfo<vllm::VllmEngine::Service>>>>>;

class VllmService final : public RawVllmService {
 public:
  explicit VllmService(FerryService* ferry) : ferry_(*ferry) {}  // which outlives this

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  FerryService& ferry_;
};

// The request of ferry.v1 that asks for the same. InvalidArgument names a field that Ferry does not support.
absl::Status ToFerry(const vllm::GenerateRequest& request, v1::GenerateRequest* result);

}  // namespace ferry
