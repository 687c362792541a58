#pragma once

// Hidden states from one worker's device to the next one's, without the host's memory in between. The rows are announced by
// another link, which also carries failures and messages of fewer rows than `min_rows`.

#include <cstdint>
#include <memory>

#include "kernels/device_peer.h"
#include "worker/stage_link.h"

namespace ferry {

class DeviceSink final : public ActivationSink {
 public:
  // Rows have n_embd floats. `peer` is ready. min_rows 1: every message goes from device to device.
  DeviceSink(std::unique_ptr<ActivationSink> announcer, std::unique_ptr<DevicePeer> peer, int64_t n_embd, int64_t min_rows)
      : announcer_(std::move(announcer)), peer_(std::move(peer)), n_embd_(n_embd), min_rows_(min_rows) {}

  void set_min_rows(int64_t min_rows) { min_rows_ = min_rows; }  // between messages

  absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, Deadline deadline) override;
  absl::Status Send(uint64_t step, int64_t first_row, Deadline deadline) override;
  absl::Status SendFailure(uint64_t step, const std::string& error, Deadline deadline) override;
  absl::StatusOr<bool> SendFromDevice(uint64_t step, int64_t first_row, const float* device_rows, int64_t num_rows,
                                      Deadline deadline) override;
  absl::Status AwaitDropped(Deadline deadline) override { return announcer_->AwaitDropped(deadline); }
  void Abort() override;

 private:
  const std::unique_ptr<ActivationSink> announcer_;
  const std::unique_ptr<DevicePeer> peer_;
  const int64_t n_embd_;
  int64_t min_rows_;
};

class DeviceSource final : public ActivationSource {
 public:
  // `announcer` brings announcements and other messages. `owned` is the same or null, if something else owns it.
  DeviceSource(ActivationSource* announcer, std::unique_ptr<ActivationSource> owned, std::unique_ptr<DevicePeer> peer,
               int64_t n_embd)
      : announcer_(*announcer), owned_(std::move(owned)), peer_(std::move(peer)), n_embd_(n_embd) {}

  absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, Deadline deadline) override {
    return announcer_.Next(step, first_row, deadline);
  }
  absl::Status Receive(float* device_rows, int64_t num_rows, Deadline deadline) override;
  void Abort() override;

 private:
  ActivationSource& announcer_;
  const std::unique_ptr<ActivationSource> owned_;
  const std::unique_ptr<DevicePeer> peer_;
  const int64_t n_embd_;
};

}  // namespace ferry
