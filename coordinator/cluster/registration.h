#pragma once

// Checks of a worker's registration and heartbeats. The planner divides by a worker's rates and terminals show its texts, so both
// are checked.

#include <cstdint>
#include <optional>
#include <string>

#include "common/ids.h"
#include "common/status.h"
#include "coordinator/cluster/membership.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// The coordinator's side of a registration's checks.
struct RegistrationRules {
  uint64_t model_fingerprint = 0;
  std::string machine;           // MachineId of the coordinator
  std::string expert_transport;  // for a worker that says auto: auto, shm, tcp or grpc
};

struct Registration {
  MemberInfo info;
  std::optional<WorkerId> wanted;
  std::string expert_transport;      // shm, tcp or grpc
  double link_bytes_per_second = 0;  // 0: unknown
};

// InvalidArgument names the field: another model, an invalid address or one that only the worker's own host can reach, an unknown
// transport or shared memory across hosts, a text that is not printable or longer than kMaxReportText bytes, a rate that is not a
// number of bytes a second. Membership checks whether the place is free.
absl::StatusOr<Registration> CheckRegistration(const internal::v1::RegisterRequest& request, const RegistrationRules& rules);
inline constexpr size_t kMaxReportText = 256;

// InvalidArgument names the field. Membership checks the sender.
absl::Status CheckHeartbeat(const internal::v1::HeartbeatRequest& request);

}  // namespace ferry
