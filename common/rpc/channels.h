#pragma once

// Channels between the processes of a cluster: one message limit, no proxy, and no connection shared with another channel, whose
// back-off after a failure would delay this one.

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "common/rpc/node_identity.h"

namespace ferry {

inline constexpr int kMaxMessageBytes = 64 << 20;  // of every server and channel of Ferry

struct ChannelOptions {
  bool keepalive = false;         // asks a silent peer, and breaks the connection where it stays silent
  bool quick_reconnects = false;  // tries again within a second: the peer may be about to start
};

// A channel to the process of the cluster at `address`. `identity`: for processes of other hosts; may be null.
std::shared_ptr<grpc::Channel> ConnectPeer(const std::string& address, NodeRole role, const NodeIdentity* identity,
                                           const ChannelOptions& options);

}  // namespace ferry
