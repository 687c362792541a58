#pragma once

// The limits of a worker's gRPC server. Only its coordinator and the worker before it call, with a few calls each.

#include <grpcpp/grpcpp.h>

#include "common/peer_keepalive.h"
#include "common/rpc/acceptor.h"
#include "common/rpc/channels.h"

namespace ferry {

inline constexpr AcceptorOptions kWorkerConnections = {.max_connections = 32, .max_of_one_peer = 32};
inline constexpr int kWorkerStreams = 8, kWorkerThreads = 64, kHandshakeTimeoutMs = 10000;  // a call has a thread

inline void SetServerLimits(grpc::ServerBuilder& builder) {
  builder.SetResourceQuota(grpc::ResourceQuota("worker").SetMaxThreads(kWorkerThreads));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kWorkerStreams);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // A worker that waits for hidden states hears nothing when the host that sends them has gone.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPeerKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPeerKeepaliveTimeoutMs);
}

}  // namespace ferry
