#pragma once

// Where connections to a gRPC server come in: they are accepted here, checked, and handed to gRPC, instead of by gRPC's own
// listener, which shows nobody the other end's user, counts no connections, and never accepts again once it has run out of
// descriptors.
//
//  - On a Unix socket the other end has to run as our user or as root (SO_PEERCRED), and the socket lies in a folder that nobody
//  else
//    may enter.
//  - Connections are bounded, all together and from one address. One too many is closed at once.
//  - Without a free descriptor the connection that came is closed, the log says so, and accepting goes on.

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <memory>

#include "common/listen_address.h"
#include "common/status.h"

namespace ferry {

struct AcceptorOptions {
  int max_connections = 4096;  // at once
  int max_of_one_peer = 1024;  // of one IP address; on a Unix socket all are of one peer
};

class Acceptor {
 public:
  // Binds and listens: connections wait until Start. FailedPrecondition: another server has the address, it is none of this host,
  // or the folder of a Unix socket is not ours alone. A socket file that a server left behind is replaced.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const ListenAddress& address, const AcceptorOptions& options);
  virtual ~Acceptor() = default;  // Stop()

  // With the port in use.
  virtual const ListenAddress& address() const = 0;
  // Before the server is built: its connections are those that come in here.
  virtual void AddTo(grpc::ServerBuilder& builder, std::shared_ptr<grpc::ServerCredentials> credentials) = 0;
  // Once the server runs; before it is shut down, Stop. Stop is idempotent. ResourceExhausted: no thread can be started.
  virtual absl::Status Start() = 0;
  virtual void Stop() = 0;
};

// Whether the process that listened at `address` is gone: connections there are refused. False when that cannot be told within a
// moment.
bool NobodyListens(const ListenAddress& address);

// Lets this process open as many descriptors as the system allows it, and returns how many those are.
int64_t RaiseDescriptorLimit();

// OK: `path` is a folder of this user that nobody else may enter.
absl::Status CheckPrivateFolder(const std::string& path);

}  // namespace ferry
