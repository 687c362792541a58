#pragma once

// Hidden states to the next worker over gRPC: one PushActivations stream an epoch, opened by the first rows.

#include <grpcpp/grpcpp.h>

#include <memory>

#include "common/ids.h"
#include "worker/stage_link.h"

namespace ferry {

std::unique_ptr<ActivationSink> MakeGrpcSink(std::shared_ptr<grpc::Channel> channel, Incarnation next, int64_t n_embd,
                                             uint64_t epoch);

}  // namespace ferry
