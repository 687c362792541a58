#pragma once

// Ways from device to device between workers of one process, whose "devices" are host memory. A transfer waits for both ends, as
// NCCL's does.

#include <array>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/device_peer.h"

namespace ferry {

class FakeDevicePeers final : public DevicePeers {
 public:
  struct Way {
    std::mutex mutex;
    std::condition_variable changed;
    std::array<bool, 2> joined = {};
    std::span<const std::byte> sent;  // by end 0, and not received yet
    int64_t transfers = 0;
  };
  // The ways of a test, by their keys.
  struct Ways {
    std::mutex mutex;
    std::map<std::string, std::shared_ptr<Way>> by_key;
    int64_t Transfers() {
      const std::lock_guard lock(mutex);
      int64_t sum = 0;
      for (const auto& [key, way] : by_key) {
        const std::lock_guard of_way(way->mutex);
        sum += way->transfers;
      }
      return sum;
    }
  };

  FakeDevicePeers(Ways* ways, std::string device) : ways_(*ways), device_(std::move(device)) {}

  std::string name() const override { return "a fake"; }
  std::string device() const override { return device_; }
  absl::StatusOr<std::string> MakeKey() override {
    const std::lock_guard lock(ways_.mutex);
    return "way " + std::to_string(ways_.by_key.size());
  }
  absl::StatusOr<std::unique_ptr<DevicePeer>> Join(const std::string& key, int end) override {
    const std::lock_guard lock(ways_.mutex);
    std::shared_ptr<Way>& way = ways_.by_key[key];
    if (way == nullptr) way = std::make_shared<Way>();
    return std::make_unique<Peer>(way, end);
  }

 private:
  class Peer final : public DevicePeer {
   public:
    Peer(std::shared_ptr<Way> way, int end) : way_(std::move(way)) {
      const std::lock_guard lock(way_->mutex);
      way_->joined[end] = true;
      way_->changed.notify_all();
    }
    absl::Status AwaitReady(Deadline deadline, const std::function<bool()>&) override {
      return Await(deadline, [this] { return way_->joined[0] && way_->joined[1]; });
    }
    absl::Status Send(std::span<const std::byte> bytes, Deadline deadline) override {
      {
        const std::lock_guard lock(way_->mutex);
        way_->sent = bytes;
        way_->changed.notify_all();
      }
      return Await(deadline, [this] { return way_->sent.empty(); });
    }
    absl::Status Receive(std::span<std::byte> bytes, Deadline deadline) override {
      return Await(deadline, [&] {
        if (way_->sent.size() != bytes.size()) return false;
        std::memcpy(bytes.data(), way_->sent.data(), bytes.size());
        way_->sent = {};
        ++way_->transfers;
        way_->changed.notify_all();
        return true;
      });
    }
    void Cut() override {
      const std::lock_guard lock(way_->mutex);
      cut_ = true;
      way_->changed.notify_all();
    }

   private:
    template <typename Done>
    absl::Status Await(Deadline deadline, const Done& done) {
      std::unique_lock lock(way_->mutex);
      bool is_done = false;
      const auto ended = [&] { return cut_ || (is_done = done()); };
      if (!way_->changed.wait_until(lock, deadline.time(), ended)) return DeadlineExceeded("the other end does nothing");
      return is_done ? absl::OkStatus() : Aborted("the epoch is over");
    }

    const std::shared_ptr<Way> way_;
    bool cut_ = false;  // guarded by way_->mutex
  };

  Ways& ways_;
  const std::string device_;
};

}  // namespace ferry
