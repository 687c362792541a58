#include "worker/stage_link_devices.h"

namespace ferry {

absl::StatusOr<std::span<float>> DeviceSink::Reserve(int64_t num_rows, Deadline deadline) {
  return announcer_->Reserve(num_rows, deadline);
}

absl::Status DeviceSink::Send(uint64_t step, int64_t first_row, Deadline deadline) {
  return announcer_->Send(step, first_row, deadline);
}

absl::Status DeviceSink::SendFailure(uint64_t step, const std::string& error, Deadline deadline) {
  return announcer_->SendFailure(step, error, deadline);
}

absl::StatusOr<bool> DeviceSink::SendFromDevice(uint64_t step, int64_t first_row, const float* device_rows, int64_t num_rows,
                                                Deadline deadline) {
  if (num_rows < min_rows_) return false;
  RETURN_IF_ERROR(announcer_->Announce(step, first_row, num_rows, deadline));
  RETURN_IF_ERROR(peer_->Send(std::as_bytes(std::span(device_rows, num_rows * n_embd_)), deadline));
  return true;
}

void DeviceSink::Abort() {
  announcer_->Abort();
  peer_->Cut();
}

absl::Status DeviceSource::Receive(float* device_rows, int64_t num_rows, Deadline deadline) {
  return peer_->Receive(std::as_writable_bytes(std::span(device_rows, num_rows * n_embd_)), deadline);
}

void DeviceSource::Abort() {
  announcer_.Abort();
  peer_->Cut();
}

}  // namespace ferry
