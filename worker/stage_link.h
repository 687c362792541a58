#pragma once

// Hidden states between stages. What one stage sends in order, the next receives in order; a step that fails on the way is
// announced, so that the stages behind it do not wait for rows that will not come.
//
// Interfaces for the stage, a queue that stands behind what comes by message, and a loopback that joins two stages of one
// process. Between hosts rows travel over gRPC (stage_link_grpc.h), on one host through shared memory (stage_link_shm.h).

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
#include "common/status.h"

namespace ferry {

inline constexpr int64_t kMaxActivationBytes = int64_t{3} << 20;  // of one chunk; a single row may be larger

// Rows [first_row, first_row + values.size() / n_embd) of a step, where they came to lie. Chunks are dropped in the order in
// which they came.
struct ActivationChunk {
  int64_t first_row = 0;
  std::span<const float> values;      // whole rows
  std::shared_ptr<const void> owner;  // of the memory; when it is dropped, the sender may have that
};

class ActivationSource {
 public:
  virtual ~ActivationSource() = default;
  // The next chunk of `step`, whose rows begin at `first_row`. DeadlineExceeded: it did not come; Aborted: the epoch is over,
  // the step failed before this stage, or the stage before is cut off.
  virtual absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, absl::Time deadline) = 0;
  // The epoch is over: whoever waits, or will, gets Aborted. Any thread.
  virtual void Abort() = 0;
};

class ActivationSink {
 public:
  virtual ~ActivationSink() = default;
  // Memory for 1 to num_rows of the rows that come next, [n, n_embd], to be filled and sent. DeadlineExceeded: the next worker
  // takes nothing; Unavailable: it is lost; Aborted: the epoch is over.
  virtual absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, absl::Time deadline) = 0;
  // Sends what was reserved as rows of `step` from first_row on. Errors as above.
  virtual absl::Status Send(uint64_t step, int64_t first_row, absl::Time deadline) = 0;
  // The step failed here or earlier.
  virtual absl::Status SendFailure(uint64_t step, const std::string& error, absl::Time deadline) = 0;
  // The epoch is over. Any thread.
  virtual void Abort() = 0;
};

// Whether `next`, which came next, is the chunk of `step` from first_row on that a source was asked for. Aborted: the step failed
// before this stage, and `error` says why. Internal: another step, or other rows.
absl::Status CheckNextChunk(uint64_t step, int64_t first_row, uint64_t next_step, int64_t next_first_row,
                            const std::string& error);

// The receiving end: transports push, the compute thread takes. Everything that is pushed is checked, since it came from another
// process. Holds the rows of one full step; who pushes more waits. Thread-safe.
class ActivationQueue final : public ActivationSource {
 public:
  // Steps have at most max_rows rows of n_embd floats.
  ActivationQueue(int64_t n_embd, int64_t max_rows) : n_embd_(n_embd), max_rows_(max_rows) {}

  // Forgets everything and takes activations of `epoch` alone from here on; who waits gets Aborted. Epoch 0: of none.
  void BeginEpoch(uint64_t epoch);

  // Waits for room. Aborted: another epoch. InvalidArgument names the field: steps going back, rows that do not follow each
  // other, too many, or not num_rows * n_embd values. Cancelled: `cancelled` became true, seen within 100 ms.
  absl::Status Push(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows, std::string data,
                    const std::function<bool()>& cancelled = nullptr);
  // The step failed before this stage; nothing more of it comes. ResourceExhausted: more failures than anybody waits for.
  absl::Status PushFailure(uint64_t epoch, uint64_t step, const std::string& error);
  // Whoever pushes in `epoch` is cut off: what came is still taken, and who waits for more gets Aborted. Of no effect in another
  // epoch.
  void Break(uint64_t epoch, const std::string& why);
  uint64_t epoch() const;

  absl::StatusOr<ActivationChunk> Next(uint64_t step, int64_t first_row, absl::Time deadline) override;
  void Abort() override { BeginEpoch(0); }

 private:
  struct Item {
    uint64_t step = 0;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    std::string data;   // F32 [num_rows, n_embd]
    std::string error;  // not empty: the step failed
  };
  absl::Status CheckLocked(uint64_t epoch, uint64_t step, int64_t first_row, int64_t num_rows, size_t bytes) const;

  const int64_t n_embd_, max_rows_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  uint64_t epoch_ = 0;
  std::string broken_;  // not empty: why nothing more comes in this epoch
  std::deque<Item> items_;
  int64_t rows_held_ = 0;
  int64_t failures_held_ = 0;
  uint64_t last_step_ = 0;  // pushed
  bool last_failed_ = false;
  int64_t end_row_ = 0;  // of last_step_
};

// Joins two stages of one process, for tests and for several stages on one device.
class LoopbackSink final : public ActivationSink {
 public:
  LoopbackSink(ActivationQueue* next, int64_t n_embd, uint64_t epoch) : next_(*next), n_embd_(n_embd), epoch_(epoch) {}
  absl::StatusOr<std::span<float>> Reserve(int64_t num_rows, absl::Time deadline) override;
  absl::Status Send(uint64_t step, int64_t first_row, absl::Time deadline) override;
  absl::Status SendFailure(uint64_t step, const std::string& error, absl::Time deadline) override;
  void Abort() override { aborted_ = true; }

 private:
  ActivationQueue& next_;
  const int64_t n_embd_;
  const uint64_t epoch_;
  std::vector<float> rows_;  // reserved
  std::atomic<bool> aborted_{false};
};

// Rows that fit into one message of at most kMaxActivationBytes, at least 1.
int64_t RowsOfAMessage(int64_t n_embd);

}  // namespace ferry
