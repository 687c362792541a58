#pragma once

// How the coordinator reaches its workers, in one place.

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "common/rpc/node_identity.h"

namespace ferry {

inline constexpr int kMaxMessageBytes = 64 << 20;

// A channel to the worker at `address` with Ferry's message limit: no proxy, and no connection shared with another channel, whose
// back-off after a failure would delay this one. `identity`: for workers of other hosts; may be null.
std::shared_ptr<grpc::Channel> ConnectWorker(const std::string& address, const NodeIdentity* identity);

}  // namespace ferry
