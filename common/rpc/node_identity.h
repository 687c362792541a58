#pragma once

// How the processes of a cluster reach each other, and as whom they are known. On one host they use Unix sockets, on which
// Acceptor has looked at the other end's user; between hosts they use TLS, in which both ends show a certificate of the cluster's
// CA (common/tls/cluster_ca.h). TCP without certificates is no way between them.

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/channel_arguments.h>

#include <memory>
#include <string>

#include "common/status.h"
#include "common/tls/cluster_ca.h"

namespace ferry {

// The certificates of this process. Files that change (a renewed certificate) are in use for connections that begin
// `refresh_seconds` later, without a restart.
class NodeIdentity {
 public:
  // FailedPrecondition says what the folder lacks, or that its certificate is over.
  static absl::StatusOr<std::unique_ptr<NodeIdentity>> Open(const std::string& folder, unsigned refresh_seconds = 30);
  virtual ~NodeIdentity() = default;
  virtual const std::string& folder() const = 0;
  // Requires a certificate of every caller, unless `admits_strangers`: then CallerOf gives kStranger for a caller without one.
  virtual std::shared_ptr<grpc::ServerCredentials> ForServer(bool admits_strangers) const = 0;
  virtual std::shared_ptr<grpc::ChannelCredentials> ForChannel() const = 0;
};

// A channel to a process of the cluster, whose certificate must name `role`. A TCP address without `identity` gives a
// channel on which every call fails with InvalidArgument.
std::shared_ptr<grpc::Channel> ConnectNode(const std::string& address, NodeRole role, const NodeIdentity* identity,
                                           grpc::ChannelArguments arguments);

// The caller: a process of this host and user, by a Unix socket, or the role in the caller's certificate.
enum class NodeCaller { kLocal, kCoordinator, kWorker, kStranger };
NodeCaller CallerOf(const grpc::ServerContextBase& context);

}  // namespace ferry
