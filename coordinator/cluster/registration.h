#pragma once

// What a worker says of itself, checked: at its registration, and in every heartbeat. Its rates go into the planner's divisions
// and its texts onto terminals, so neither is taken as it comes.

#include <cstdint>
#include <optional>
#include <string>

#include "common/ids.h"
#include "common/status.h"
#include "coordinator/cluster/membership.h"
#include "ferry/internal/v1/cluster.pb.h"

namespace ferry {

// What a registration has to fit.
struct RegistrationRules {
  uint64_t model_fingerprint = 0;
  std::string host;              // machine id of the coordinator
  std::string expert_transport;  // for a worker that says auto: auto, shm or grpc
};

struct Registration {
  MemberInfo info;
  std::optional<WorkerId> wanted;
  std::string expert_transport;      // shm or grpc
  double link_bytes_per_second = 0;  // 0: not known
};

// InvalidArgument names the field: another model, an address that is none, that leads nowhere or that only the worker's own host
// can reach, an unknown transport or shared memory across hosts, a text that is not kMaxReportText printable bytes, a rate that
// is no number of bytes. Whether the place is free is Membership's to say.
absl::StatusOr<Registration> CheckRegistration(const internal::v1::RegisterRequest& request, const RegistrationRules& rules);
inline constexpr size_t kMaxReportText = 256;

// InvalidArgument names the field. Who sends it is Membership's to check.
absl::Status CheckHeartbeat(const internal::v1::HeartbeatRequest& request);

}  // namespace ferry
