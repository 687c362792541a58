#pragma once

// Status across gRPC: the codes are the same numbers on both sides.

#include <grpcpp/support/status.h>

#include <string>

#include "common/status.h"

namespace ferry {

// gRPC itself gives some errors without a message, such as a request that cannot be parsed: a person gets one.
inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  if (status.ok() || !status.error_message().empty()) return absl::Status(code, status.error_message());
  return absl::Status(code, absl::StrFormat("the other side answered %s and gave no reason", absl::StatusCodeToString(code)));
}

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace ferry
