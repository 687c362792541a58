#pragma once

// Channels and servers as workers make them: one message limit, no proxies, and connections that notice a dead peer.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "common/rpc/acceptor.h"
#include "common/rpc/node_identity.h"

namespace ferry {

inline constexpr int kWorkerMaxMessageBytes = 64 << 20;

inline constexpr int kKeepaliveMs = 10000, kKeepaliveTimeoutMs = 5000;
enum class Keepalive { kOff, kOn };  // kOn only towards workers: their servers allow frequent pings

// `identity`: for processes of other hosts; may be null.
inline std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address, NodeRole role, const NodeIdentity* identity,
                                                Keepalive keepalive) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kWorkerMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kWorkerMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Also how long one attempt may take: 100 ms, as between attempts, was too little on a busy machine for a handshake.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  if (keepalive == Keepalive::kOn) {
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  }
  return ConnectNode(address, role, identity, std::move(arguments));
}

// Those who call a worker are its coordinator and the worker before it, with a few calls each; a call has a thread.
inline constexpr AcceptorOptions kWorkerConnections = {.max_connections = 32, .max_of_one_peer = 32};
inline constexpr int kWorkerStreams = 8, kWorkerThreads = 64, kHandshakeTimeoutMs = 10000;

inline void ConfigureServer(grpc::ServerBuilder& builder) {
  builder.SetResourceQuota(grpc::ResourceQuota("worker").SetMaxThreads(kWorkerThreads));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kWorkerStreams);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
  builder.SetMaxReceiveMessageSize(kWorkerMaxMessageBytes);
  builder.SetMaxSendMessageSize(kWorkerMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // A worker that waits for hidden states hears nothing when the host that sends them has gone.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
}

}  // namespace ferry
