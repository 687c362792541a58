#pragma once

// The gRPC service of generate.proto. It translates and decides nothing.

#include <functional>
#include <memory>

#include "common/clock.h"
#include "coordinator/generation/generation_loop.h"
#include "coordinator/generation/request.h"
#include "coordinator/generation/task_pool.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/generate.grpc.pb.h"

namespace ferry {

class FerryService final : public v1::Ferry::CallbackService {
 public:
  struct Parts {  // all borrowed
    GenerationLoop* loop = nullptr;
    const Tokenizer* tokenizer = nullptr;
    const Clock* clock = nullptr;
    TaskPool* pool = nullptr;  // tokenizes: a megabyte of prompt takes longer than a callback should
    RequestLimits limits;
    v1::GetModelInfoResponse model_info;
    std::function<v1::GetServerInfoResponse()> server_info;  // thread-safe
  };
  explicit FerryService(Parts parts) : parts_(std::move(parts)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

 private:
  const Parts parts_;
};

}  // namespace ferry
