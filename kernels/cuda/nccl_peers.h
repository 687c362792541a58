#pragma once

// Connections between GPUs over NCCL (kernels/device_peer.h).

#include <memory>

#include "common/status.h"
#include "kernels/device_peer.h"

namespace ferry {

// FailedPrecondition: NCCL cannot be loaded, or is too old.
absl::StatusOr<std::unique_ptr<DevicePeers>> CreateNcclPeers(const DevicePeersOptions& options, Ops* ops);

}  // namespace ferry
