#pragma once

// Transfers between the memories of two devices that belong to two processes, without the host's memory in between.

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "common/deadline.h"
#include "common/status.h"
#include "kernels/ops.h"

namespace ferry {

// One end of a connection between two devices. After an error it is of no more use. One thread at a time, but for Cut. Destroyed
// before memory that it was given is freed.
class DevicePeer {
 public:
  virtual ~DevicePeer() = default;

  // Waits until the other end has joined. Unavailable: it is lost; Cancelled: `cancelled`, which may be null, returned true;
  // DeadlineExceeded; Aborted: Cut was called.
  virtual absl::Status AwaitReady(Deadline deadline, const std::function<bool()>& cancelled) = 0;
  // Sends device memory, as the compute queued so far leaves it, and waits until it can be written again. The other end receives
  // as many bytes. Errors as of AwaitReady.
  virtual absl::Status Send(std::span<const std::byte> device_bytes, Deadline deadline) = 0;
  // Fills device memory after the compute queued so far, and waits until the bytes are there.
  virtual absl::Status Receive(std::span<std::byte> device_bytes, Deadline deadline) = 0;
  // Running and later calls return Aborted. Any thread.
  virtual void Cut() = 0;
};

// Makes connections between this process's device and others. Thread-safe.
class DevicePeers {
 public:
  virtual ~DevicePeers() = default;

  virtual std::string name() const = 0;    // "NCCL 2.28.9"
  virtual std::string device() const = 0;  // which device of its host this is: two processes on one cannot be connected

  // What both ends of a new connection need, of at most kMaxKeyBytes. Who knows it can join.
  static constexpr size_t kMaxKeyBytes = 256;
  virtual absl::StatusOr<std::string> MakeKey() = 0;
  // Begins to join as one end, 0 or 1, and returns before the other has joined. InvalidArgument: `key` is none.
  virtual absl::StatusOr<std::unique_ptr<DevicePeer>> Join(const std::string& key, int end) = 0;
};

struct DevicePeersOptions {
  std::string library;     // file of NCCL; empty: libnccl.so.2 from where the system looks
  BackendOptions backend;  // that `ops` was made with
  // Called when a connection could not be ended in time, and the device may be lost to this process. Any thread.
  std::function<void(const absl::Status&)> on_stuck;
};
// Over NCCL, for `ops`, which outlives the result. FailedPrecondition: the build has no CUDA, `ops` computes on no GPU, or NCCL
// cannot be loaded; the message says which.
absl::StatusOr<std::unique_ptr<DevicePeers>> CreateDevicePeers(const DevicePeersOptions& options, Ops* ops);

}  // namespace ferry
