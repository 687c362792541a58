#pragma once

// What a worker offers to a process of its host for one epoch: descriptors of memory that both will map.

#include <memory>
#include <string>
#include <vector>

#include "common/shm/descriptor_socket.h"
#include "common/status.h"

namespace ferry {

// One offer at a time. One thread.
class EpochOffer {
 public:
  // Takes back the offer before this one. ResourceExhausted: no descriptors are left; otherwise the socket's errors.
  absl::Status Make(const std::vector<int>& descriptors);
  // Of an epoch that is over, whether or not it was fetched.
  void Withdraw();

  // What to ask for it with (FetchDescriptors), while there is one.
  const std::string& socket() const { return server_->name(); }
  const std::string& key() const { return key_; }  // empty: there is none

 private:
  std::unique_ptr<DescriptorServer> server_;  // made when it is first needed
  std::string key_;
};

}  // namespace ferry
