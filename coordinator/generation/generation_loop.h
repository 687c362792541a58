#pragma once

// The thread that runs the scheduler: takes requests in, sends steps out, and hands results round. Other threads post
// to its inbox and never wait for it, except where said.
//
// It serves while it has an executor. Suspend takes the executor away and ends every request with a status; until the
// next Attach, new ones are refused with Unavailable and that status's message.

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
  int64_t prompt_tokens = 0;     // rows of prompts that were computed, since the start
  int64_t generated_tokens = 0;  // rows of decoding
};

class GenerationLoop {
 public:
  // Until the first Attach new requests are refused with Unavailable and `initially`. `clock` must outlive this.
  GenerationLoop(const BatchSchedulerOptions& options, const Clock* clock, const std::string& initially);
  // Ends what still runs with Unavailable.
  ~GenerationLoop();

  // Takes a request; what becomes of it, refusal included, goes to its sink.
  void Submit(std::shared_ptr<Generation> generation);
  // Forgets a request: it hears nothing from here on, and its slot is free before the next step is made up.
  void Cancel(std::shared_ptr<Generation> generation);

  // `executor` must stay until Suspend.
  void Attach(StepExecutor* executor);
  // Ends every request with `status` and waits until the executor is no longer used.
  void Suspend(const absl::Status& status);
  // From now on new requests are refused with `status`; those that are here go on.
  void StopAdmitting(const absl::Status& status);
  // Whether nobody runs or waits any more, at the latest at `deadline`.
  bool WaitUntilIdle(absl::Time deadline);

  GenerationStats stats() const;

 private:
  using Task = std::function<void()>;
  void Post(Task task);
  void Run();
  void PublishStats();
  void SendSteps();

  const Clock& clock_;
  // Of the loop's thread.
  BatchScheduler scheduler_;
  StepExecutor* executor_ = nullptr;
  absl::Status suspended_;  // why there is no executor
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
