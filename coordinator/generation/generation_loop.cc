#include "coordinator/generation/generation_loop.h"

#include <algorithm>
#include <future>
#include <utility>

#include "common/deadline.h"
#include "common/thread_limit.h"

namespace ferry {
namespace {

// The longest sleep: deadlines are checked at least so often.
constexpr absl::Duration kLoopTick = absl::Milliseconds(100);

}  // namespace

GenerationLoop::GenerationLoop(const BatchSchedulerOptions& options, const Clock* clock, const std::string& initially)
    : clock_(*clock), scheduler_(options, clock), suspended_(Unavailable("%s", initially)) {
  PublishStats();
}

absl::StatusOr<std::unique_ptr<GenerationLoop>> GenerationLoop::Create(const BatchSchedulerOptions& options, const Clock* clock,
                                                                       const std::string& initially) {
  std::unique_ptr<GenerationLoop> loop(new GenerationLoop(options, clock, initially));
  ASSIGN_OR_RETURN(loop->thread_, StartThread([raw = loop.get()] { raw->Run(); }));
  return loop;
}

GenerationLoop::~GenerationLoop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    posted_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void GenerationLoop::Post(Task task) {
  // Under the lock: once it is given up, this task may be what the owner waits for before it destroys the loop.
  const std::lock_guard lock(mutex_);
  inbox_.push_back(std::move(task));
  posted_ = true;
  wake_.notify_one();
}

void GenerationLoop::Submit(std::shared_ptr<Generation> generation) {
  Post([this, generation = std::move(generation)] {
    absl::Status status = refusing_;
    const bool held = holds_ && scheduler_.Holds(*generation);
    if (status.ok() && executor_ == nullptr && !held) status = suspended_;
    if (status.ok()) status = scheduler_.Enqueue(generation);
    if (!status.ok()) generation->OnFailed(status);
  });
}

void GenerationLoop::Cancel(std::shared_ptr<Generation> generation) {
  Post([this, generation = std::move(generation)] { scheduler_.Cancel(generation.get()); });
}

void GenerationLoop::Attach(StepExecutor* executor) {
  Post([this, executor] {
    executor_ = executor;
    scheduler_.CachesReturned();
  });
}

void GenerationLoop::Hold(const absl::Status& status) { Detach(status, /*holds=*/true); }

void GenerationLoop::Suspend(const absl::Status& status) { Detach(status, /*holds=*/false); }

void GenerationLoop::Detach(const absl::Status& status, bool holds) {
  std::promise<void> done;
  Post([&] {
    executor_ = nullptr;
    suspended_ = Unavailable("no model is served now: %s", status.message());
    holds_ = holds;
    if (holds) {
      scheduler_.LoseCaches(status);
    } else {
      scheduler_.FailAll(status);
    }
    done.set_value();
  });
  done.get_future().wait();
}

void GenerationLoop::StopAdmitting(const absl::Status& status) {
  Post([this, status] { refusing_ = status; });
}

bool GenerationLoop::WaitUntilIdle(absl::Time deadline) {
  // The second task runs in a later round than the first, so whatever was posted before this call is in the stats by
  // then.
  for (int round = 0; round < 2; ++round) {
    std::promise<void> seen;
    Post([&] { seen.set_value(); });
    seen.get_future().wait();
  }
  std::unique_lock lock(mutex_);
  while (stats_.running > 0 || stats_.queued > 0) {
    const absl::Duration left = deadline - clock_.Now();
    if (left <= absl::ZeroDuration()) return false;
    changed_.wait_for(lock, absl::ToChronoMicroseconds(std::min(left, kLoopTick)));
  }
  return true;
}

GenerationStats GenerationLoop::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void GenerationLoop::PublishStats() {
  const std::lock_guard lock(mutex_);
  stats_ = {.running = scheduler_.num_running(),
            .queued = scheduler_.num_queued(),
            .kv_blocks_total = scheduler_.slots().num_blocks(),
            .kv_blocks_free = scheduler_.slots().free_blocks(),
            .kv_blocks_cached = scheduler_.slots().cached_blocks(),
            .host_blocks_total = scheduler_.slots().num_host_blocks(),
            .host_blocks_free = scheduler_.slots().free_host_blocks(),
            .cache = scheduler_.slots().stats(),
            .prompt_tokens = prompt_tokens_,
            .generated_tokens = generated_tokens_,
            .resumed = scheduler_.num_resumed(),
            .suspended = scheduler_.num_suspended()};
  changed_.notify_all();
}

void GenerationLoop::SendSteps() {
  if (executor_ == nullptr) return;
  while (std::optional<StepPlan> step = scheduler_.NextStep(executor_->max_steps_in_flight(), executor_->step_cost_rows())) {
    for (const PlannedSequence& sequence : step->sequences) {
      (sequence.decoding ? generated_tokens_ : prompt_tokens_) += static_cast<int64_t>(sequence.token_ids.size());
    }
    const StepId id = step->id;
    executor_->Submit(*std::move(step), [this, id](StepOutcome outcome) {
      Post([this, id, outcome = std::make_shared<StepOutcome>(std::move(outcome))] {
        scheduler_.OnStepDone(id, std::move(*outcome));
      });
    });
  }
}

void GenerationLoop::Run() {
  std::vector<Task> tasks;
  while (true) {
    const absl::Duration sleep = std::clamp(scheduler_.NextDeadline() - clock_.Now(), absl::ZeroDuration(), kLoopTick);
    const Deadline next = Deadline::In(sleep);
    if (scheduler_.num_in_flight() > 0) {
      wait_.Until(
          next, [this] { return posted_.load(std::memory_order_relaxed); },
          [this](Deadline until) {
            std::unique_lock lock(mutex_);
            wake_.wait_until(lock, until.time(), [&] { return posted_.load(); });
          });
    }
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, absl::ToChronoMicroseconds(next.Remaining()) + std::chrono::microseconds(1),
                     [&] { return stop_ || !inbox_.empty(); });
      if (stop_ && inbox_.empty()) break;
      tasks.swap(inbox_);
      posted_ = false;
    }
    for (Task& task : tasks) task();
    tasks.clear();
    scheduler_.ExpireDeadlines();
    SendSteps();
    PublishStats();
  }
  scheduler_.FailAll(Unavailable("the coordinator is ending"));
}

}  // namespace ferry
