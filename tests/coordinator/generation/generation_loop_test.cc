#include "coordinator/generation/generation_loop.h"

#include <condition_variable>
#include <mutex>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

// Samples `max_tokens` zeros behind a prompt; its end can be waited for.
class CountingGeneration final : public Generation {
 public:
  CountingGeneration(int64_t prompt, int64_t max_tokens) : prompt_(prompt), max_tokens_(max_tokens), tokens_(prompt, 1) {}

  int64_t prompt_tokens() const override { return prompt_; }
  int64_t reserve_tokens() const override { return prompt_ + max_tokens_; }
  bool may_reuse_prefix() const override { return true; }
  absl::Time deadline() const override { return end_by; }
  bool forgets_experts() const override { return false; }
  bool resumes() const override { return may_resume; }
  std::span<const int32_t> tokens() const override { return tokens_; }
  std::optional<LogitsRequest> LogitsAt(int64_t position) const override {
    return position < prompt_ - 1 ? std::nullopt : std::optional(LogitsRequest{.top_n = 1});
  }
  void OnAdmitted(int64_t) override {}
  bool OnRows(int64_t first, int64_t num, std::span<LogitsResult>, const v1::ExpertCounters&) override {
    if (first + num < static_cast<int64_t>(tokens_.size())) return false;
    tokens_.push_back(0);
    const bool finished = static_cast<int64_t>(tokens_.size()) - prompt_ >= max_tokens_;
    if (finished) End(absl::OkStatus());
    return finished;
  }
  void OnFailed(const absl::Status& status) override { End(status); }

  // How it ended, or nullopt when it has not after ten seconds.
  std::optional<absl::Status> WaitForEnd() {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, std::chrono::seconds(60), [&] { return end_.has_value(); });
    return end_;
  }

  absl::Time end_by = absl::InfiniteFuture();
  bool may_resume = true;

 private:
  void End(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    end_ = status;
    ended_.notify_all();
  }

  const int64_t prompt_, max_tokens_;
  std::vector<int32_t> tokens_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<absl::Status> end_;
};

// Answers steps on a thread of its own, or holds them until it is told.
class FakeExecutor final : public StepExecutor {
 public:
  explicit FakeExecutor(bool hold = false) : hold_(hold), thread_([this] { Run(); }) {}
  ~FakeExecutor() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  int max_steps_in_flight() const override { return 2; }
  void Submit(StepPlan step, Done done) override {
    const std::lock_guard lock(mutex_);
    ++num_steps;
    queue_.emplace_back(std::move(step), std::move(done));
    changed_.notify_all();
  }
  bool WaitForStep() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return num_steps > 0; });
  }
  int num_steps = 0;  // guarded by mutex_

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || (!hold_ && !queue_.empty()); });
      if (stop_) return;
      auto [step, done] = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      StepOutcome outcome;
      for (const PlannedSequence& sequence : step.sequences)
        outcome.logits.resize(outcome.logits.size() + sequence.logits.size());
      done(std::move(outcome));
      lock.lock();
    }
  }

  const bool hold_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<StepPlan, Done>> queue_;
  bool stop_ = false;
  std::thread thread_;
};

class GenerationLoopTest : public ::testing::Test {
 protected:
  std::shared_ptr<CountingGeneration> Submit(int64_t prompt, int64_t max_tokens) {
    auto generation = std::make_shared<CountingGeneration>(prompt, max_tokens);
    loop_->Submit(generation);
    return generation;
  }
  // Until the loop says so, at most ten seconds.
  bool Eventually(const std::function<bool(const GenerationStats&)>& condition) {
    const Deadline end = Deadline::In(absl::Seconds(60));
    while (!end.Passed()) {
      if (condition(loop_->stats())) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }

  const std::unique_ptr<GenerationLoop> loop_ =
      GenerationLoop::Create({.max_batch_tokens = 16,
                              .micro_batch_tokens = 8,
                              .max_running = 2,
                              .max_queued = 3,
                              .vocab_size = 10,
                              .slots = {.num_slots = 2, .num_blocks = 16, .block_tokens = 4},
                              .resume_patience = absl::Minutes(5)},
                             Clock::Real(), "the model is being loaded")
          .value();
};

TEST_F(GenerationLoopTest, RefusesBeforeItServes) {
  const auto request = Submit(4, 2);
  EXPECT_THAT(request->WaitForEnd().value(), StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("being loaded")));
}

TEST_F(GenerationLoopTest, ServesManyRequestsToTheirEnd) {
  FakeExecutor executor;
  loop_->Attach(&executor);
  for (int round = 0; round < 5; ++round) {
    std::vector<std::shared_ptr<CountingGeneration>> requests;
    for (int i = 0; i < 5; ++i) requests.push_back(Submit(1 + 5 * i, 1 + i));
    for (const auto& request : requests) EXPECT_OK(request->WaitForEnd().value());
  }
  EXPECT_TRUE(Eventually([](const GenerationStats& stats) {
    return stats.running == 0 && stats.queued == 0 && stats.kv_blocks_free == stats.kv_blocks_total;
  }));
  EXPECT_GT(loop_->stats().generated_tokens, 0);
  loop_->Suspend(Unavailable("end of test"));
}

TEST_F(GenerationLoopTest, AFullQueueAnswersResourceExhausted) {
  FakeExecutor executor(/*hold=*/true);
  loop_->Attach(&executor);
  std::vector<std::shared_ptr<CountingGeneration>> taken;
  for (int i = 0; i < 5; ++i) taken.push_back(Submit(4, 4));
  EXPECT_THAT(Submit(4, 4)->WaitForEnd().value(), StatusIs(absl::StatusCode::kResourceExhausted));
  loop_->Suspend(Unavailable("worker 0 is lost"));
  for (const auto& request : taken) EXPECT_THAT(request->WaitForEnd().value(), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(GenerationLoopTest, SuspendEndsEveryRequestAndAttachServesAgain) {
  {
    FakeExecutor hanging(/*hold=*/true);
    loop_->Attach(&hanging);
    const auto request = Submit(4, 4);
    ASSERT_TRUE(hanging.WaitForStep());
    loop_->Suspend(DeadlineExceeded("worker 1 hangs"));
    EXPECT_THAT(request->WaitForEnd().value(), StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_THAT(Submit(4, 4)->WaitForEnd().value(),
                StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("worker 1 hangs")))
        << "a later request had no deadline to miss";
  }
  FakeExecutor executor;
  loop_->Attach(&executor);
  EXPECT_OK(Submit(4, 4)->WaitForEnd().value());
  loop_->Suspend(Unavailable("end of test"));
}

TEST_F(GenerationLoopTest, HoldKeepsRequestsForTheNextExecutor) {
  const auto impatient = std::make_shared<CountingGeneration>(4, 4);
  impatient->may_resume = false;
  std::shared_ptr<CountingGeneration> ran, came;
  {
    FakeExecutor hanging(/*hold=*/true);
    loop_->Attach(&hanging);
    ran = Submit(4, 4);
    ASSERT_TRUE(hanging.WaitForStep());
    loop_->Hold(Unavailable("worker 1 is lost"));
    came = Submit(4, 4);
    loop_->Submit(impatient);
    EXPECT_THAT(impatient->WaitForEnd().value(),
                StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("worker 1 is lost")));
  }
  FakeExecutor executor;
  loop_->Attach(&executor);
  EXPECT_OK(ran->WaitForEnd().value());
  EXPECT_OK(came->WaitForEnd().value());
  EXPECT_EQ(loop_->stats().resumed, 1);
  loop_->Suspend(Unavailable("end of test"));
}

TEST_F(GenerationLoopTest, CancelFreesTheSlotWhileAStepIsInFlight) {
  FakeExecutor executor(/*hold=*/true);
  loop_->Attach(&executor);
  const auto request = Submit(4, 40);
  ASSERT_TRUE(executor.WaitForStep());
  ASSERT_TRUE(Eventually([](const GenerationStats& stats) { return stats.kv_blocks_free == 5; }));
  loop_->Cancel(request);
  EXPECT_TRUE(Eventually([](const GenerationStats& stats) { return stats.running == 0 && stats.kv_blocks_free == 16; }));
  loop_->Suspend(Unavailable("end of test"));
}

TEST_F(GenerationLoopTest, EndsARequestAtItsDeadlineWhileTheExecutorHangs) {
  FakeExecutor executor(/*hold=*/true);
  loop_->Attach(&executor);
  const auto request = std::make_shared<CountingGeneration>(4, 4);
  request->end_by = Clock::Real()->Now() + absl::Milliseconds(50);
  loop_->Submit(request);
  EXPECT_THAT(request->WaitForEnd().value(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  loop_->Suspend(Unavailable("end of test"));
}

TEST_F(GenerationLoopTest, DrainsWhatIsThereAndRefusesWhatComes) {
  FakeExecutor executor;
  loop_->Attach(&executor);
  const auto request = Submit(4, 30);
  loop_->StopAdmitting(Unavailable("the coordinator is draining"));
  EXPECT_THAT(Submit(4, 4)->WaitForEnd().value(), StatusIs(absl::StatusCode::kUnavailable, testing::HasSubstr("draining")));
  EXPECT_TRUE(loop_->WaitUntilIdle(Clock::Real()->Now() + absl::Seconds(60)));
  EXPECT_OK(request->WaitForEnd().value());
  loop_->Suspend(Unavailable("end of test"));
}

TEST_F(GenerationLoopTest, DrainingEndsAtItsDeadline) {
  FakeExecutor executor(/*hold=*/true);
  loop_->Attach(&executor);
  Submit(4, 4);
  EXPECT_FALSE(loop_->WaitUntilIdle(Clock::Real()->Now() + absl::Milliseconds(20)));
  loop_->Suspend(Unavailable("end of test"));
}

}  // namespace
}  // namespace ferry
