#include "common/rpc/channels.h"

#include <grpcpp/support/channel_arguments.h>

#include <utility>

#include "common/peer_keepalive.h"

namespace ferry {

std::shared_ptr<grpc::Channel> ConnectPeer(const std::string& address, NodeRole role, const NodeIdentity* identity,
                                           const ChannelOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  if (options.quick_reconnects) {
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    // Also the time that one attempt may take: 100 ms, as between attempts, was too little on a busy machine for a handshake.
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  }
  if (options.keepalive) {
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPeerKeepaliveMs);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPeerKeepaliveTimeoutMs);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  }
  return ConnectNode(address, role, identity, std::move(arguments));
}

}  // namespace ferry
