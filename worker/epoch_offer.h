#pragma once

// Hands descriptors of shared memory to another process of this host, for one epoch.

#include <memory>
#include <string>
#include <vector>

#include "common/shm/descriptor_socket.h"
#include "common/status.h"

namespace ferry {

// One offer at a time. One thread.
class EpochOffer {
 public:
  // Offers `descriptors` and withdraws the offer before. ResourceExhausted: this process is out of descriptors. Otherwise the
  // socket's errors.
  absl::Status Make(const std::vector<int>& descriptors);
  // Ends the offer, fetched or not, when its epoch is over.
  void Withdraw();

  // The arguments of FetchDescriptors for the other process.
  const std::string& socket() const { return server_->name(); }
  const std::string& key() const { return key_; }  // empty: no offer

 private:
  std::unique_ptr<DescriptorServer> server_;  // made when it is first needed
  std::string key_;
};

}  // namespace ferry
