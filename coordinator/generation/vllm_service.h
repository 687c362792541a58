#pragma once

// vllm_engine.proto over gRPC, for gateways that speak it: translates to ferry.v1 and decides nothing. Callers, bounds and queues
// are FerryService's.

#include "coordinator/generation/ferry_service.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"

namespace ferry {

namespace vllm = ::vllm::grpc::engine;

class VllmService final : public BoundedService {
 public:
  explicit VllmService(FerryService* ferry);  // which outlives this

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request);
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response);

 private:
  FerryService& ferry_;
};

// The request of ferry.v1 that asks for the same. InvalidArgument names a field that Ferry does not support.
absl::Status ToFerry(const vllm::GenerateRequest& request, v1::GenerateRequest* result);

}  // namespace ferry
