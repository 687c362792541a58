#include "worker/epoch_offer.h"

#include <unistd.h>

#include <utility>

namespace ferry {

absl::Status EpochOffer::Make(const std::vector<int>& descriptors) {
  Withdraw();
  if (server_ == nullptr) {
    // Several in one process, as two in each worker and more in tests, need names of their own.
    ASSIGN_OR_RETURN(
        server_, DescriptorServer::Listen(absl::StrFormat("ferry-worker-%d-%s", getpid(), RandomDescriptorKey().substr(0, 16))));
  }
  std::string key = RandomDescriptorKey();
  if (!server_->Offer(key, descriptors)) return ResourceExhausted("no descriptors are left to share memory with");
  key_ = std::move(key);
  return absl::OkStatus();
}

void EpochOffer::Withdraw() {
  if (!key_.empty()) server_->Withdraw(key_);
  key_.clear();
}

}  // namespace ferry
