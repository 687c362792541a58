#pragma once

// Passes file descriptors between processes of one user on one host, over a Unix socket: the coordinator hands shared memory to
// workers, and a worker to the worker before it. Neither end trusts the other: any process may find the socket and send anything.

#include <memory>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

// The giving end: an abstract Unix socket. Peers of another user are turned away (SO_PEERCRED).
class DescriptorServer {
 public:
  // `name`: an abstract name without the leading zero byte.
  static absl::StatusOr<std::unique_ptr<DescriptorServer>> Listen(const std::string& name);
  virtual ~DescriptorServer() = default;
  virtual const std::string& name() const = 0;
  // Hands `fds` to the next caller that presents `key`; each offer serves one caller, a second offer under a key replaces the
  // first. Keys are 1 to 64 bytes and hard to guess; at most 16 descriptors. The server duplicates them: the caller's own
  // may be closed at once. False: the key or the number is out of range, or the process has no descriptors left.
  virtual bool Offer(const std::string& key, const std::vector<int>& fds) = 0;
  virtual void Withdraw(const std::string& key) = 0;
};
// A key for Offer: 64 random characters, which nobody can guess.
std::string RandomDescriptorKey();
// The taking end: fetches the descriptors offered under `key`, at most 16. NotFound: no such offer. Unavailable: no server
// listens, or it hung up. PermissionDenied: the server is another user's. DeadlineExceeded: no answer came in time. Internal: the
// answer is malformed; its descriptors are closed.
absl::StatusOr<std::vector<UniqueFd>> FetchDescriptors(const std::string& name, const std::string& key, Deadline deadline);

}  // namespace ferry
