#pragma once

// Runs the steps of a worker one after the other on its compute thread, and keeps the current epoch. It knows no RPC: requests
// are messages, answers go to a callback, hidden states through an ActivationSource and an ActivationSink.
//
// Steps of an epoch are numbered from 1 without gaps. When a step fails, the runner answers with the error, tells the next stage,
// and goes on with the next step. Thread-safe.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

#include "absl/time/time.h"
#include "common/deadline.h"
#include "common/shm/paced_wait.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"
#include "kernels/device_peer.h"
#include "worker/help_boards.h"
#include "worker/stage.h"
#include "worker/stage_link.h"

namespace ferry {

class StepRunner {
 public:
  using Answer = std::function<void(const internal::v1::StepResponse&)>;

  using OnFailed = std::function<void(const absl::Status&)>;

  // Borrows both; only the compute thread uses the stage from here on. The compute thread calls `on_failed` before the answer of
  // a step that failed in this worker; not for a step that was aborted or failed in an earlier stage. `awake`: its waits for a
  // step that are expected to be no longer do not sleep. ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<StepRunner>> Create(Stage* stage, ActivationQueue* activations,
                                                            OnFailed on_failed = nullptr,
                                                            absl::Duration awake = absl::ZeroDuration());
  ~StepRunner();  // aborts queued and running steps, and waits for the running one

  // Ends the current epoch before `epoch`: answers its steps with ABORTED, the running one at the end of its layer, and gives up
  // its links. Aborted: `epoch` is not later than the current one. DeadlineExceeded: the running step did not end in time, and
  // there is no current epoch.
  absl::Status EndEpochBefore(uint64_t epoch, Deadline deadline);
  // The same, and then begins `epoch`, whose hidden states go to `next` (null: last stage).
  absl::Status BeginEpoch(uint64_t epoch, std::unique_ptr<ActivationSink> next, Deadline deadline);
  // Before the epoch's first step: its hidden states come from `previous`, or from the queue if that is null. Aborted: another
  // epoch is current. FailedPrecondition: the epoch has had steps.
  absl::Status ReceiveFrom(uint64_t epoch, std::unique_ptr<ActivationSource> previous);
  // Before the epoch's first step: workers help each other over `boards`. Errors as of ReceiveFrom.
  absl::Status HelpOver(uint64_t epoch, std::shared_ptr<HelpBoards> boards);
  // Before the epoch's first step: hidden states may also come from the previous worker's device by `peer`, which is ready; they
  // are announced where they came before. A row has n_embd floats. Errors as of ReceiveFrom; FailedPrecondition: there is such a
  // way.
  absl::Status ReceiveFromDevice(uint64_t epoch, std::unique_ptr<DevicePeer> peer, int64_t n_embd);
  uint64_t epoch() const;

  // Runs `job` on the compute thread before the first step of `epoch`, with the epoch's source of hidden states; or between
  // epochs, for epoch 0, with null. Returns what it returns, when it has ended. `job` bounds itself. Errors as of ReceiveFrom;
  // FailedPrecondition: another job runs, or an epoch lasts; DeadlineExceeded: it could not begin in time.
  absl::Status RunBeforeSteps(uint64_t epoch, const std::function<absl::Status(ActivationSource*)>& job, Deadline deadline);
  // Measures the link on the compute thread. FailedPrecondition: there is a current epoch, or another measurement runs.
  // DeadlineExceeded: it did not end in time; the compute thread starts nothing else before it has.
  absl::StatusOr<ExpertCache::Measurement> MeasureLink(absl::Duration time, Deadline deadline);

  // Queues a step. Calls `answer` once, from the compute thread or from within this call.
  void Submit(internal::v1::StepRequest request, Answer answer);

  // Expert traffic of all steps so far.
  v1::ExpertCounters counters() const;

 private:
  struct Queued {
    internal::v1::StepRequest request;
    Answer answer;
    Deadline deadline;
  };
  // Shared by the compute thread and a caller that may have given up.
  struct Job {
    std::function<void()> run;
    bool started = false, done = false;
  };

  StepRunner(Stage* stage, ActivationQueue* activations, OnFailed on_failed, absl::Duration awake);
  void Loop();
  // All of these with the lock held.
  bool HasCall() const { return ending_ || job_ != nullptr || !queue_.empty() || !help_published_ || HelpWanted(); }
  bool HelpWanted() const { return help_ != nullptr && help_->Called(); }
  // The bell is a system call, and the compute thread, if it spins, needs the lock next: it would sleep on it meanwhile.
  void Call() {
    called_ = true;
    changed_.notify_all();
    if (sleeps_on_bell_ && help_ != nullptr) help_->Wake();
  }
  void DropHelp();
  void AwaitCall(std::unique_lock<std::mutex>& lock);
  void AwaitCallOrHelp(std::unique_lock<std::mutex>& lock);
  void ServeHelp(std::unique_lock<std::mutex>& lock);
  absl::StatusOr<StageResult> RunOne(const Queued& queued);
  void AbortLocked(std::unique_lock<std::mutex>& lock);
  absl::Status EndEpochLocked(uint64_t next_epoch, Deadline deadline, std::unique_lock<std::mutex>& lock);
  absl::Status CheckBeforeStepsLocked(uint64_t epoch) const;
  absl::StatusOr<std::shared_ptr<Job>> QueueJobLocked(std::function<void()> run);

  Stage& stage_;
  ActivationQueue& activations_;
  const OnFailed on_failed_;
  const StepLimits limits_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool ending_ = false;
  bool running_ = false;
  uint64_t epoch_ = 0;  // 0: no current epoch
  uint64_t last_epoch_ = 0;
  uint64_t next_step_ = 1;
  std::unique_ptr<ActivationSource> source_;  // null: the queue; used by the compute thread while running_
  bool has_device_way_ = false;               // of source_
  std::unique_ptr<ActivationSink> sink_;      // likewise; null: last stage
  std::shared_ptr<HelpBoards> help_;          // null: this worker helps nobody
  bool help_published_ = true;                // false: help_ is new
  std::stop_source stop_;
  std::deque<Queued> queue_;
  std::shared_ptr<Job> job_;  // queued or running
  v1::ExpertCounters counters_;
  std::atomic<bool> called_ = false;  // Call() since the compute thread last found nothing to do; read without the lock
  // Set before the compute thread looks at called_ for the last time: it sees the call, or the caller sees this.
  std::atomic<bool> sleeps_on_bell_ = false;
  PacedWait wait_;  // the compute thread's wait for Call()

  std::thread thread_;
};

}  // namespace ferry
