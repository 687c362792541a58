#pragma once

// A connection that carries rows and contributions between two processes of a cluster: bytes in order, as fast as the network.
// On one host it is a Unix socket, whose other end has to be a process of the same user or of root. Between hosts it is TLS 1.3
// over TCP, in which both ends show a certificate of the cluster's CA (common/tls/cluster_ca.h). gRPC, which carries everything
// else, hands each message from thread to thread; here the thread that waits reads the socket itself.
//
// A connection belongs to one thread at a time, but for Cut(). After an error it is of no more use. Between hosts, a connection
// counts as lost when the kernel of the other host has not answered for 15 s (common/peer_keepalive.h). The kernel answers also
// for a process that does not read, so such a process is waited for.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "common/deadline.h"
#include "common/listen_address.h"
#include "common/status.h"
#include "common/tls/cluster_ca.h"

namespace ferry {

// Who the two ends are. The files of `folder` are read for each connection, so that a renewed certificate is in use at once.
struct DataIdentity {
  std::string folder;  // as of cluster_ca.h; not used on Unix sockets
  NodeRole peer = NodeRole::kWorker;
  bool or_coordinator = false;  // the other end may be on the coordinator's host, whose certificate is the coordinator's
};

class DataConnection {
 public:
  // Unavailable: nobody listens at `address`. PermissionDenied: the other end is no process of the cluster, or of another role.
  // FailedPrecondition: the certificates cannot be read. DeadlineExceeded.
  static absl::StatusOr<std::unique_ptr<DataConnection>> Connect(const ListenAddress& address, const DataIdentity& identity,
                                                                 Deadline deadline);
  virtual ~DataConnection() = default;

  // Sends all of `bytes`. Unavailable: the other end is gone or lost. DeadlineExceeded: it does not read.
  virtual absl::Status Send(std::span<const std::byte> bytes, Deadline deadline) = 0;
  // Fills `bytes`. Spins for a moment around the time at which the first of them is expected, else sleeps. Unavailable: the other
  // end is gone or lost. DeadlineExceeded: not all of them came.
  virtual absl::Status Receive(std::span<std::byte> bytes, Deadline deadline) = 0;
  // The same, but returns how many of `bytes` came, once some have; 0: none came before `deadline`. A thread that has other
  // things to do passes a deadline that is over.
  virtual absl::StatusOr<size_t> ReceiveSome(std::span<std::byte> bytes, Deadline deadline) = 0;
  // Any thread, beside another that sends or receives: waits until bytes have come that nobody has received, or the other end has
  // gone, or `deadline` has passed.
  virtual void AwaitBytes(Deadline deadline) = 0;
  // Any thread: ends what another thread waits for here, and every later call, with Unavailable.
  virtual void Cut() = 0;
};

class DataListener {
 public:
  // FailedPrecondition: another process has the address, or it is none of this host.
  static absl::StatusOr<std::unique_ptr<DataListener>> Listen(const ListenAddress& address, const DataIdentity& identity);
  virtual ~DataListener() = default;

  // With the port in use.
  virtual const ListenAddress& address() const = 0;
  // The next connection, whose other end has shown who it is within `handshake`; null: nobody connected before `deadline`. Errors
  // are those of a caller that was refused.
  virtual absl::StatusOr<std::unique_ptr<DataConnection>> Accept(Deadline deadline, absl::Duration handshake) = 0;
};

}  // namespace ferry
