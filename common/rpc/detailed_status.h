#pragma once

// Errors across gRPC with their details, as google.rpc.Status has them: ErrorInfo and RetryInfo.

#include <grpcpp/support/status.h>

#include "common/error_details.h"

namespace ferry {

// The domain of ErrorInfo.
inline constexpr char kErrorDomain[] = "ferry.v1";

// With ReasonOf and RetryOf as details.
grpc::Status ToDetailedGrpcStatus(const absl::Status& status);
// Takes the details from the other side, where they are well formed.
absl::Status FromDetailedGrpcStatus(const grpc::Status& status);

}  // namespace ferry
