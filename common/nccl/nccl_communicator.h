#pragma once

// An NCCL communicator of two processes that never hangs. NCCL's operations wait for the peer without an end when it dies, and a
// peer is not told of an abort. So the communicator does not block, its errors are polled up to a deadline, and whatever fails
// aborts it.
//
// One thread at a time, but for Cut.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/nccl/nccl_library.h"
#include "common/status.h"

namespace ferry {

class NcclCommunicator {
 public:
  struct Options {
    std::shared_ptr<const NcclLibrary> library;
    absl::Duration abort_patience = absl::Seconds(5);
    // Called when an abort has not returned within abort_patience: the device may be lost, so the process should end. Any thread.
    std::function<void(const absl::Status&)> on_stuck;
  };
  // True when the operation posted last has passed on its stream.
  using Passed = std::function<absl::StatusOr<bool>()>;

  // For rank 0, which hands it to rank 1.
  static absl::StatusOr<NcclUniqueId> MakeId(const NcclLibrary& library);
  // Begins to join the other rank, on the calling thread's current CUDA device, and returns before that is done.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Begin(const Options& options, const NcclUniqueId& id, int rank);
  ~NcclCommunicator();  // aborts

  // Waits until both ranks have joined. Cancelled: `cancelled`, which may be null, returned true. Other errors as of Await.
  absl::Status AwaitReady(Deadline deadline, const std::function<bool()>& cancelled);

  // Queues the transfer of device memory on `stream`. Await must follow. Errors as of Await.
  absl::Status Send(const void* data, int64_t bytes, void* stream, Deadline deadline);
  absl::Status Receive(void* data, int64_t bytes, void* stream, Deadline deadline);
  // Waits until `passed` returns true. After an error the communicator is aborted and returns that error from then on.
  // DeadlineExceeded; Unavailable: the peer is lost; Aborted: Cut was called; or an error of `passed`.
  absl::Status Await(const Passed& passed, Deadline deadline);

  // Running and later calls return Aborted. Any thread.
  void Cut() { cut_ = true; }

 private:
  NcclCommunicator(const Options& options, int rank) : options_(options), peer_(1 - rank) {}
  absl::Status Posted(int result, const char* what, Deadline deadline);
  absl::Status AwaitProgress(const char* what, Deadline deadline, const std::function<bool()>& cancelled);
  absl::StatusOr<bool> InProgress(const char* what);
  absl::Status Usable();
  absl::Status Fail(absl::Status why);
  void Abort();

  const Options options_;
  const int peer_;
  ncclComm* comm_ = nullptr;
  absl::Status failed_;
  std::atomic<bool> cut_{false};
};

}  // namespace ferry
