#pragma once

// Status across gRPC: the codes are the same numbers on both sides.

#include <grpcpp/support/status.h>

#include <string>

#include "common/status.h"

namespace ferry {

inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace ferry
