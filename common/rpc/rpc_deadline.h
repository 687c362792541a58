#pragma once

// Deadlines of gRPC. It takes dates too, and follows the wall clock then; a monotonic time it takes as it is.

#include <grpc/support/time.h>

#include <algorithm>

#include "common/deadline.h"

namespace ferry {

// For set_deadline, WaitForConnected and Server::Shutdown.
inline gpr_timespec RpcDeadline(Deadline deadline) {
  if (deadline == Deadline::Never()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(std::max(deadline.Remaining(), absl::ZeroDuration()));
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(nanoseconds, GPR_TIMESPAN));
}
inline gpr_timespec RpcDeadline(absl::Duration timeout) { return RpcDeadline(Deadline::In(timeout)); }

}  // namespace ferry
