#pragma once

// A cable between two networks that delays frames, loses some, or carries none. It is two TAP devices and a thread that carries
// frames from one to the other, since not every kernel has netem, which does the same. What a sender sees of a lost frame is
// silence.

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace ferry {

class BadCable {
 public:
  struct Trouble {
    absl::Duration delay;  // of each frame, each way
    double loss = 0;       // the share of frames that is lost, each way
    bool cut = false;      // all frames are lost, also those on their way
    bool deaf = false;     // those towards the other end
  };
  struct Counts {
    int64_t carried = 0, lost = 0;  // frames, both ways
  };

  // Makes both ends as devices in the network namespace of the process `network`; an end may be moved to another namespace. The
  // same `seed` loses the same frames of the same traffic. FailedPrecondition: this machine has no TAP devices.
  static absl::StatusOr<std::unique_ptr<BadCable>> Lay(pid_t network, const std::string& one_end, const std::string& other_end,
                                                       uint64_t seed);
  ~BadCable();  // takes the ends away

  void Set(const Trouble& trouble);  // of frames that come from now on
  Counts counts() const { return {.carried = carried_, .lost = lost_}; }

 private:
  class Way;

  BadCable(UniqueFd one, UniqueFd other, UniqueFd stop) : ends_{std::move(one), std::move(other)}, stop_(std::move(stop)) {}
  Trouble trouble() const;
  void Carry(uint64_t seed);

  const UniqueFd ends_[2];
  const UniqueFd stop_;  // an eventfd
  mutable std::mutex mutex_;
  Trouble trouble_;  // guarded by mutex_
  std::atomic<int64_t> carried_{0}, lost_{0};
  std::thread thread_;
};

}  // namespace ferry
