#pragma once

// The thread that runs the scheduler: accepts requests, sends steps to the executor, and passes results to requests. Other
// threads post to its inbox and do not wait for it, except in Hold, Suspend and WaitUntilIdle.
//
// It serves while it has an executor. Hold takes the executor away and keeps the requests, also those that come, for the next
// one, as far as their patience goes (batch_scheduler.h). Suspend takes it away and ends every request with a status. Until the
// next Attach, the loop refuses new requests that it does not hold with Unavailable and that status's message.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/shm/paced_wait.h"
#include "coordinator/cluster/step_plan.h"
#include "coordinator/generation/batch_scheduler.h"

namespace ferry {

struct GenerationStats {
  int64_t running = 0;
  int64_t queued = 0;
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_free = 0;    // not reserved by a running request
  int64_t kv_blocks_cached = 0;  // of these: with tokens of earlier requests
  int64_t host_blocks_total = 0, host_blocks_free = 0;
  KvSlotsStats cache;
  int64_t prompt_tokens = 0;     // rows of prompts that were computed, and of requests that went on, since the start
  int64_t generated_tokens = 0;  // rows of decoding
  int64_t resumed = 0;           // how often requests went on after a Hold
  int64_t suspended = 0;         // how often requests gave their slot to another owner's
};

class GenerationLoop {
 public:
  // Refuses new requests with Unavailable and the message `initially` until the first Attach. `clock` outlives the loop.
  // ResourceExhausted: no thread can be started.
  static absl::StatusOr<std::unique_ptr<GenerationLoop>> Create(const BatchSchedulerOptions& options, const Clock* clock,
                                                                const std::string& initially);
  // Ends running requests with Unavailable.
  ~GenerationLoop();

  // Accepts a request. Its sink gets all results, a refusal too.
  void Submit(std::shared_ptr<Generation> generation);
  // Drops a request: does not call it again, and frees its slot before the next step is made.
  void Cancel(std::shared_ptr<Generation> generation);

  // `executor` must stay until Hold or Suspend.
  void Attach(StepExecutor* executor);
  // The executor has failed with `status` and lost all caches; waits until it is no longer used.
  void Hold(const absl::Status& status);
  // Ends every request with `status` and waits until the executor is no longer used.
  void Suspend(const absl::Status& status);
  // Refuses new requests with `status` from now on; accepted ones go on.
  void StopAdmitting(const absl::Status& status);
  // Waits until no request runs or is queued; false when one still is at `deadline`.
  bool WaitUntilIdle(absl::Time deadline);

  GenerationStats stats() const;

 private:
  using Task = std::function<void()>;
  GenerationLoop(const BatchSchedulerOptions& options, const Clock* clock, const std::string& initially);
  void Post(Task task);
  void Run();
  void PublishStats();
  void SendSteps();
  // Gives the executor up on the loop's thread, holds the requests there or ends them, and waits for it.
  void Detach(const absl::Status& status, bool holds);

  const Clock& clock_;
  // Of the loop's thread.
  BatchScheduler scheduler_;
  StepExecutor* executor_ = nullptr;
  absl::Status suspended_;  // why there is no executor
  bool holds_ = false;      // without an executor: requests may wait for the next
  absl::Status refusing_;   // not OK: StopAdmitting
  int64_t prompt_tokens_ = 0, generated_tokens_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;     // the inbox has something, or stop
  std::condition_variable changed_;  // stats_ have changed
  std::vector<Task> inbox_;
  bool stop_ = false;
  std::atomic<bool> posted_ = false;  // inbox_ has something, or stop_; read without the lock
  GenerationStats stats_;
  PacedWait wait_;  // for the answer to a step; of the loop's thread
  std::thread thread_;
};

}  // namespace ferry
