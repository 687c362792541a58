#pragma once

// Bounds how many calls are open, in all and of each connection. Thread-safe.

#include <map>
#include <mutex>
#include <string>

#include "common/status.h"

namespace ferry {

class OpenCalls {
 public:
  // Both are positive.
  OpenCalls(int max_total, int max_of_connection) : max_total_(max_total), max_of_connection_(max_of_connection) {}

  // Counts a call of the connection that gRPC names `peer`, until Remove. ResourceExhausted: there is no room, and it is not
  // counted. Local connections have no bound of their own: the gateway brings the calls of many by one.
  absl::Status Add(const std::string& peer) {
    const std::lock_guard lock(mutex_);
    if (total_ >= max_total_) return ResourceExhausted("%d calls are open", total_);
    int& of_peer = of_peer_[peer];
    if (of_peer >= max_of_connection_ && !peer.starts_with("unix:")) {
      return ResourceExhausted("%d calls of this connection are open", of_peer);
    }
    ++total_;
    ++of_peer;
    return absl::OkStatus();
  }
  void Remove(const std::string& peer) {
    const std::lock_guard lock(mutex_);
    --total_;
    const auto calls = of_peer_.find(peer);
    if (--calls->second == 0) of_peer_.erase(calls);
  }

 private:
  const int max_total_, max_of_connection_;
  std::mutex mutex_;
  int total_ = 0;
  std::map<std::string, int> of_peer_;  // those that have some
};

}  // namespace ferry
