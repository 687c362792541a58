#pragma once

// Hidden states between stages. A stage receives rows in the order in which the stage before sent them. A stage whose step fails
// tells the next, so that no stage waits for rows that will not come.
//
// This header has the two interfaces that a stage uses, the queue that holds rows received by message, and a loopback that joins
// two stages of one process. stage_link_tcp.h sends rows to other hosts over a connection of their own, stage_link_grpc.h over
// gRPC, stage_link_shm.h through memory of one host, and stage_link_devices.h adds to either of the last two a way from device to
// device: its rows are announced by the link that it is added to.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/status.h"
#include "worker/activation_wire.h"

namespace ferry {

inline constexpr int64_t kMaxActivationBytes = int64_t{3} << 20;  // limit of one chunk; a single row may be larger

// How long a step waits for the coordinator to end the epoch, once the connection to the worker before has ended.
inline constexpr absl::Duration kCutOffPatience = absl::Seconds(1);

// Rows [first_row, first_row + values.size() / n_embd) of a step, in the memory that received them; or announced ones, which
// ActivationSource::Receive brings. The receiver drops chunks in the order in which they came.
struct ActivationChunk {
  int64_t first_row = 0;
  int64_t announced_rows = 0;         // not 0: there are no values
  std::span<const float> values;      // whole rows
  std::shared_ptr<const void> owner;  // keeps the memory; dropping it lets the sender reuse the memory
};

class ActivationSource {
 public:
  virtual ~ActivationSource() = default;
  // Waits for the next chunk of `step`, whose rows begin at `first_row`. DeadlineExceeded: it did not come. Aborted: the epoch
  // is over, the step failed in an earlier stage, or the connection to the previous stage broke.
  virtual absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, Deadline deadline) = 0;
  // Fills device memory [num_rows, n_embd] with the rows that the last chunk announced, and waits until they are there. Errors as
  // of Next; Unavailable: the previous worker is lost. Internal: the link has no way from device to device.
  virtual absl::Status Receive(float* device_rows, int64_t num_rows, Deadline deadline);
  // Of a measurement: tells the previous stage that every chunk so far was dropped, where the link does not show it by itself.
  virtual absl::Status Confirm(Deadline deadline);
  // Ends the epoch: running and later calls of Next return Aborted. Any thread.
  virtual void Abort() = 0;
};

class ActivationSink {
 public:
  virtual ~ActivationSink() = default;
  // Memory [n, n_embd], 1 <= n <= num_rows, that the caller fills with the next rows and then sends. DeadlineExceeded: the next
  // worker takes no rows. Unavailable: it is lost. Aborted: the epoch is over.
  virtual absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, Deadline deadline) = 0;
  // Sends the reserved memory as rows of `step` from first_row on. Errors as of Reserve.
  virtual absl::Status Send(uint64_t step, int64_t first_row, Deadline deadline) = 0;
  // Tells the next stage that the step failed, here or in an earlier stage. Errors as of Reserve.
  virtual absl::Status SendFailure(uint64_t step, const std::string& error, Deadline deadline) = 0;
  // Sends rows of the device's memory [num_rows, n_embd], as the compute queued so far leaves them, from device to device, and
  // waits until that memory can be written again. False: this link sends so many rows by Reserve and Send. Errors as of Reserve.
  virtual absl::StatusOr<bool> SendFromDevice(uint64_t step, int64_t first_row, const float* device_rows, int64_t num_rows,
                                              Deadline deadline);
  // Announces rows that come from device to device. Errors as of Reserve; Internal: the link announces none.
  virtual absl::Status Announce(uint64_t step, int64_t first_row, int64_t num_rows, Deadline deadline);
  // Of a measurement: waits until the next stage has dropped every chunk, and has called Confirm. DeadlineExceeded, Aborted;
  // Internal: the link cannot tell.
  virtual absl::Status AwaitDropped(Deadline deadline);
  // Ends the epoch: running and later calls return Aborted. Any thread.
  virtual void Abort() = 0;
};

// Checks that the chunk that arrived, rows of `next_step` from next_first_row on, is the one that a source was asked for.
// Aborted: the step failed in an earlier stage, for the reason in `error`. Internal: another step, or other rows.
absl::Status CheckNextChunk(uint64_t step, int64_t first_row, uint64_t next_step, int64_t next_first_row,
                            const std::string& error);

// What a source answers that finds an announcement of an earlier step, which failed here: its rows would come in place of later
// ones.
absl::Status MissedAnnouncement(uint64_t step);

// The receiving end for messages: a transport pushes rows, the compute thread takes them. Push checks every field, since the rows
// come from another process. The queue holds the rows of one full step; a Push beyond that waits. Thread-safe.
class ActivationQueue final : public ActivationSource {
 public:
  // Steps have at most max_rows rows of n_embd floats.
  ActivationQueue(int64_t n_embd, int64_t max_rows) : n_embd_(n_embd), max_rows_(max_rows), order_(max_rows) {}

  // Drops all rows and accepts only those of `epoch` from here on; calls that wait return Aborted. Epoch 0 accepts none.
  void BeginEpoch(uint64_t epoch);

  // Appends rows of a step, once there is room. Aborted: another epoch. InvalidArgument names the field: what RowOrder refuses,
  // or not num_rows * n_embd values. Cancelled: `cancelled` returned true; it is polled every 100 ms.
  absl::Status Push(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows, std::string data,
                    const std::function<bool()>& cancelled = nullptr);
  // Records that rows come from device to device. Errors as of Push; ResourceExhausted: as many announcements and failures wait
  // as a worker queues steps.
  absl::Status PushAnnouncement(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows);
  // Records that the step failed in an earlier stage. ResourceExhausted: as many failures wait as a worker queues steps.
  absl::Status PushFailure(uint64_t epoch, uint64_t step, const std::string& error);
  // The connection that pushes in `epoch` is lost: Next still returns the rows that came, then Aborted with `why`. No effect in
  // another epoch.
  void Break(uint64_t epoch, const std::string& why);
  uint64_t epoch() const;

  absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, Deadline deadline) override;
  void Abort() override { BeginEpoch(0); }

 private:
  struct Item {
    uint64_t step = 0;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    std::string data;        // F32 [num_rows, n_embd]
    bool announced = false;  // there is no data
    std::string error;       // not empty: the step failed
    bool holds_rows() const { return !announced && error.empty(); }
  };
  absl::Status CheckLocked(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows) const;
  absl::Status CheckDataLocked(int64_t num_rows, size_t bytes) const;
  void PopLocked();

  const int64_t n_embd_, max_rows_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  uint64_t epoch_ = 0;
  std::string broken_;  // not empty: why this epoch's rows have ended
  std::deque<Item> items_;
  int64_t rows_held_ = 0;
  int64_t others_held_ = 0;  // failures and announcements
  RowOrder order_;
};

// Joins two stages of one process, for tests and for several stages on one device.
class LoopbackSink final : public ActivationSink {
 public:
  LoopbackSink(ActivationQueue* next, int64_t n_embd, uint64_t epoch) : next_(*next), n_embd_(n_embd), epoch_(epoch) {}
  absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, Deadline deadline) override;
  absl::Status Send(uint64_t step, int64_t first_row, Deadline deadline) override;
  absl::Status SendFailure(uint64_t step, const std::string& error, Deadline deadline) override;
  void Abort() override { aborted_ = true; }

 private:
  ActivationQueue& next_;
  const int64_t n_embd_;
  const uint64_t epoch_;
  std::vector<float> rows_;  // what Reserve returned
  std::atomic<bool> aborted_{false};
};

// How many rows fit into one message of kMaxActivationBytes; at least 1.
int64_t RowsOfAMessage(int64_t n_embd);

}  // namespace ferry
