#pragma once

// Runs the steps of a worker one after the other on its compute thread, and knows which epoch lasts. No RPC here: requests come
// in as messages, answers go out through a callback, activations through queue and sink.
//
// Steps of an epoch are numbered from 1 without gaps. A step that fails, for whatever reason, is answered with its error and
// announced to the next stage, and the runner goes on. Thread-safe.

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
#include "common/shm/paced_wait.h"
#include "common/status.h"
#include "ferry/internal/v1/worker.pb.h"
#include "worker/stage.h"
#include "worker/stage_link.h"

namespace ferry {

class StepRunner {
 public:
  using Answer = std::function<void(const internal::v1::StepResponse&)>;

  using OnFailed = std::function<void(const absl::Status&)>;

  // Borrows both. The stage belongs to the compute thread from here on. `on_failed` hears, from that thread and before the
  // answer, of every step that failed here by itself: not of one that was given up.
  StepRunner(Stage* stage, ActivationQueue* activations, OnFailed on_failed = nullptr);
  ~StepRunner();  // gives up what is queued or running, and waits for it

  // Ends the epoch that lasts: its steps are answered with ABORTED, the one that runs at the end of its layer. Then begins
  // `epoch`, whose hidden states go to `next` (null: last stage). Aborted: not a later epoch. DeadlineExceeded: the step that
  // runs did not end in time; no epoch lasts then.
  absl::Status BeginEpoch(uint64_t epoch, std::unique_ptr<ActivationSink> next, absl::Time deadline);
  // The epoch's hidden states come from `previous`, or again from the queue if that is null. Before its first step. Aborted:
  // another epoch lasts; FailedPrecondition: it has had steps.
  absl::Status ReceiveFrom(uint64_t epoch, std::unique_ptr<ActivationSource> previous);
  uint64_t epoch() const;

  // Measures the link on the compute thread. FailedPrecondition: an epoch lasts, or another probe runs. DeadlineExceeded: it did
  // not end; nothing else runs before it has.
  absl::StatusOr<ExpertCache::Probe> ProbeLink(absl::Duration time, absl::Time deadline);

  // Queues a step. `answer` is called once, from the compute thread or from this call.
  void Submit(internal::v1::StepRequest request, Answer answer);

  // Expert traffic of all steps so far.
  v1::ExpertCounters counters() const;

 private:
  struct Queued {
    internal::v1::StepRequest request;
    Answer answer;
    absl::Time deadline;
  };
  // Shared by the compute thread and a caller who may have given up.
  struct ProbeJob {
    absl::Duration time;
    std::optional<absl::StatusOr<ExpertCache::Probe>> result;
  };

  void Loop();
  // All of these with the lock held.
  bool HasCall() const { return ending_ || probe_ != nullptr || !queue_.empty(); }
  void Call() {
    called_.store(true, std::memory_order_relaxed);
    changed_.notify_all();
  }
  void AwaitCall(std::unique_lock<std::mutex>& lock);
  absl::StatusOr<StageResult> RunOne(const Queued& queued);
  void AbortLocked(std::unique_lock<std::mutex>& lock);

  Stage& stage_;
  ActivationQueue& activations_;
  const OnFailed on_failed_;
  const StepLimits limits_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool ending_ = false;
  bool running_ = false;
  uint64_t epoch_ = 0;  // 0: none lasts
  uint64_t last_epoch_ = 0;
  uint64_t next_step_ = 1;
  std::unique_ptr<ActivationSource> source_;  // null: the queue; used by the compute thread while running_
  std::unique_ptr<ActivationSink> sink_;      // likewise; null: last stage
  std::stop_source stop_;
  std::deque<Queued> queue_;
  std::shared_ptr<ProbeJob> probe_;  // asked for, or running
  v1::ExpertCounters counters_;
  std::atomic<bool> called_ = false;  // since the compute thread last found nothing to do; read without the lock
  PacedWait wait_;                    // for a call; of the compute thread

  std::thread thread_;
};

}  // namespace ferry
