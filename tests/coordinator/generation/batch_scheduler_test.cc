#include "coordinator/generation/batch_scheduler.h"

#include <numeric>

#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A request that samples `id + 1` after `id`, until it has max_tokens.
class FakeGeneration final : public Generation {
 public:
  FakeGeneration(std::vector<int32_t> prompt, int64_t max_tokens)
      : prompt_tokens_(static_cast<int64_t>(prompt.size())), max_tokens_(max_tokens), tokens_(std::move(prompt)) {}

  int64_t prompt_tokens() const override { return prompt_tokens_; }
  int64_t reserve_tokens() const override { return prompt_tokens_ + max_tokens_; }
  bool may_reuse_prefix() const override { return !score; }
  absl::Time deadline() const override { return end_by; }
  bool forgets_experts() const override { return forgets; }
  bool resumes() const override { return may_resume; }
  const GenerationOwner& owner() const override { return whose; }
  int32_t priority() const override { return urgency; }
  std::span<const int32_t> tokens() const override { return tokens_; }
  std::optional<LogitsRequest> LogitsAt(int64_t position) const override {
    if (position + 1 < static_cast<int64_t>(tokens_.size()) && position >= prompt_tokens_ - 1) return std::nullopt;  // sampled
    if (position < prompt_tokens_ - 1) return score ? std::optional(LogitsRequest{.top_n = 2}) : std::nullopt;
    return max_tokens_ == 0 ? std::nullopt : std::optional(LogitsRequest{.top_n = top_n});
  }
  void OnAdmitted(int64_t cached_tokens) override { admitted = true, cached = cached_tokens; }
  void OnResumed() override { ++resumed; }
  void OnSuspended() override { ++suspended; }
  bool OnRows(int64_t first, int64_t num, std::span<LogitsResult> logits, const v1::ExpertCounters&) override {
    rows.emplace_back(first, num);
    num_logits += static_cast<int64_t>(logits.size());
    if (first + num < static_cast<int64_t>(tokens_.size())) return false;
    if (generated() < max_tokens_) tokens_.push_back(tokens_.back() + 1);
    finished = generated() >= max_tokens_;
    return finished;
  }
  void OnFailed(const absl::Status& status) override { failed = status; }
  absl::Time unsent_until() const override { return send_by; }
  void SendUnsent() override { ++sent, send_by = absl::InfiniteFuture(); }

  int64_t generated() const { return static_cast<int64_t>(tokens_.size()) - prompt_tokens_; }

  bool score = false, forgets = false, may_resume = true;
  int resumed = 0, suspended = 0, sent = 0;
  absl::Time send_by = absl::InfiniteFuture();
  GenerationOwner whose;
  int32_t urgency = 0;
  int32_t top_n = 4;
  absl::Time end_by = absl::InfiniteFuture();
  bool admitted = false, finished = false;
  int64_t cached = -1, num_logits = 0;
  absl::Status failed;
  std::vector<std::pair<int64_t, int64_t>> rows;  // (first position, count) of each part that came back

 private:
  const int64_t prompt_tokens_;
  const int64_t max_tokens_;
  std::vector<int32_t> tokens_;
};

// Steps of at most 16 rows, 4 of prompts while others decode; 3 requests at once, 4 waiting; 32 blocks of 4 tokens.
BatchSchedulerOptions SmallOptions() {
  return {.max_batch_tokens = 16,
          .micro_batch_tokens = 4,
          .max_running = 3,
          .max_queued = 4,
          .vocab_size = 1000,
          .slots = {.num_slots = 3, .num_blocks = 32, .block_tokens = 4}};
}

class BatchSchedulerTest : public ::testing::Test {
 protected:
  explicit BatchSchedulerTest(const BatchSchedulerOptions& options = SmallOptions()) : scheduler_(options, &clock_) {}
  std::shared_ptr<FakeGeneration> Make(int64_t prompt, int64_t max_tokens) {
    std::vector<int32_t> tokens(prompt);
    std::iota(tokens.begin(), tokens.end(), next_first_ += 1000);
    return std::make_shared<FakeGeneration>(std::move(tokens), max_tokens);
  }
  std::shared_ptr<FakeGeneration> Add(int64_t prompt, int64_t max_tokens) {
    auto generation = Make(prompt, max_tokens);
    EXPECT_OK(scheduler_.Enqueue(generation));
    return generation;
  }
  void Finish(const StepPlan& step) {
    StepOutcome outcome;
    for (const PlannedSequence& sequence : step.sequences) outcome.logits.resize(outcome.logits.size() + sequence.logits.size());
    scheduler_.OnStepDone(step.id, std::move(outcome));
  }
  // One step at a time; the sizes of its sequences.
  std::vector<int64_t> RunStep() {
    const std::optional<StepPlan> step = scheduler_.NextStep(1);
    if (!step) return {};
    std::vector<int64_t> sizes;
    for (const PlannedSequence& sequence : step->sequences) sizes.push_back(static_cast<int64_t>(sequence.token_ids.size()));
    Finish(*step);
    return sizes;
  }
  void RunAll() {
    while (!RunStep().empty()) {
    }
  }

  FakeClock clock_;
  BatchScheduler scheduler_;
  int32_t next_first_ = 0;
};

TEST_F(BatchSchedulerTest, RunsARequestFromPromptToLastToken) {
  const auto request = Add(5, 3);
  EXPECT_TRUE(request->admitted);
  EXPECT_THAT(RunStep(), ElementsAre(5));
  EXPECT_THAT(RunStep(), ElementsAre(1));
  EXPECT_THAT(RunStep(), ElementsAre(1));
  EXPECT_TRUE(request->finished);
  EXPECT_THAT(RunStep(), IsEmpty());
  EXPECT_EQ(request->num_logits, 3);
  EXPECT_EQ(scheduler_.num_running(), 0);
  EXPECT_EQ(scheduler_.slots().free_blocks(), 32);
}

// Two owners: three requests run at once, so the share of each is one.
class OwnersTest : public BatchSchedulerTest {
 protected:
  std::shared_ptr<FakeGeneration> AddOf(const std::string& owner, int64_t prompt, int64_t max_tokens) {
    auto generation = Make(prompt, max_tokens);
    generation->whose.name = generation->whose.cache_domain = owner;
    EXPECT_OK(scheduler_.Enqueue(generation));
    return generation;
  }
  std::vector<std::shared_ptr<FakeGeneration>> Greedy(int requests, int64_t prompt, int64_t max_tokens) {
    std::vector<std::shared_ptr<FakeGeneration>> greedy;
    for (int i = 0; i < requests; ++i) greedy.push_back(AddOf("greedy", prompt, max_tokens));
    return greedy;
  }
};

TEST_F(OwnersTest, TheYoungestRequestOfAGreedyOwnerMakesRoomAtOnce) {
  const auto greedy = Greedy(6, 4, 8);  // 3 run, 3 wait
  RunStep();
  RunStep();
  const auto polite = AddOf("polite", 4, 2);
  EXPECT_TRUE(polite->admitted);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(greedy[i]->suspended, i == 2 ? 1 : 0) << i;
  EXPECT_EQ(scheduler_.num_running(), 3);
  RunAll();
  clock_.Advance(absl::Seconds(1));  // the place that was kept for the polite one
  RunAll();
  for (const auto& generation : greedy) {
    EXPECT_TRUE(generation->finished);
    EXPECT_EQ(generation->generated(), 8);
    EXPECT_EQ(generation->resumed, 0) << "nothing was lost";
  }
  EXPECT_EQ(scheduler_.num_suspended(), 1);
}

TEST_F(OwnersTest, AStepInFlightSaysNothingToARequestThatWasSuspended) {
  const auto greedy = Greedy(3, 4, 8);
  RunStep();
  const std::optional<StepPlan> in_flight = scheduler_.NextStep(1);
  ASSERT_TRUE(in_flight);
  const auto polite = AddOf("polite", 4, 2);
  Finish(*in_flight);
  EXPECT_EQ(greedy[0]->generated(), 2);
  EXPECT_EQ(greedy[2]->generated(), 1);
  while (!polite->finished) RunStep();
  clock_.Advance(absl::Seconds(1));
  RunStep();
  EXPECT_EQ(greedy[2]->generated(), 2) << "its block was kept: only the row of its last token is computed again";
}

TEST_F(OwnersTest, APlaceIsKeptForAnOwnerThatWasHereAMomentAgo) {
  const auto greedy = Greedy(6, 4, 30);
  for (int i = 0; i < 5; ++i) {
    const auto polite = AddOf("polite", 4, 2);
    EXPECT_TRUE(polite->admitted);
    while (!polite->finished) RunStep();
    RunStep();
    EXPECT_EQ(scheduler_.num_running(), 2);
    clock_.Advance(absl::Milliseconds(500));
  }
  EXPECT_EQ(scheduler_.num_suspended(), 1) << "the first time";
  clock_.Advance(absl::Milliseconds(500));
  RunStep();
  EXPECT_EQ(scheduler_.num_running(), 3);
}

TEST_F(OwnersTest, RequestsThatAreSuspendedAgainAndAgainGetToTheirEnd) {
  const auto greedy = Greedy(6, 4, 12);
  int steps = 0;
  for (int asked = 0; !greedy[5]->finished && steps < 1000; ++asked) {
    const auto polite = AddOf("polite", 4, 2);
    for (; !polite->finished; ++steps) RunStep();
    clock_.Advance(absl::Seconds(1));
    RunStep();
  }
  for (const auto& generation : greedy) EXPECT_TRUE(generation->finished);
  EXPECT_EQ(greedy[0]->suspended, 0);
  EXPECT_GT(scheduler_.num_suspended(), 3);
}

TEST_F(OwnersTest, NobodyIsSuspendedForARequestThatHasNoRoomEvenSo) {
  const auto greedy = Greedy(3, 20, 12);       // 8 of 32 blocks each
  const auto large = AddOf("polite", 100, 8);  // 27 blocks: two requests of the other would have to end
  EXPECT_FALSE(large->admitted);
  EXPECT_EQ(scheduler_.num_suspended(), 0);
  RunAll();
  EXPECT_TRUE(large->finished);
}

TEST_F(OwnersTest, ASuspendedRequestOutlastsALossOfTheCaches) {
  BatchSchedulerOptions options = SmallOptions();
  options.resume_patience = absl::Seconds(30);
  BatchScheduler scheduler(options, &clock_);
  std::vector<std::shared_ptr<FakeGeneration>> requests;
  for (const char* owner : {"greedy", "greedy", "greedy", "polite"}) {
    requests.push_back(Make(4, 8));
    requests.back()->whose.name = owner;
    ASSERT_OK(scheduler.Enqueue(requests.back()));
  }
  EXPECT_EQ(requests[2]->suspended, 1);
  clock_.Advance(absl::Minutes(1));
  scheduler.LoseCaches(Unavailable("worker 1 is lost"));
  clock_.Advance(absl::Seconds(20));
  scheduler.ExpireDeadlines();
  scheduler.CachesReturned();
  for (int i = 0; i < 100; ++i) {
    clock_.Advance(absl::Seconds(1));
    const std::optional<StepPlan> step = scheduler.NextStep(1);
    if (!step) continue;
    StepOutcome outcome;
    for (const PlannedSequence& sequence : step->sequences) outcome.logits.resize(outcome.logits.size() + sequence.logits.size());
    scheduler.OnStepDone(step->id, std::move(outcome));
  }
  for (const auto& request : requests) EXPECT_TRUE(request->finished) << request->failed;
}

TEST_F(OwnersTest, PromptsOfOwnersShareTheRowsOfAStep) {
  Greedy(2, 30, 1);
  AddOf("polite", 6, 3);
  EXPECT_THAT(RunStep(), ElementsAre(10, 6)) << "of 16, one that wants less than half leaves the rest";
  EXPECT_THAT(RunStep(), ElementsAre(1, 2)) << "of 4 beside a decoding request, half are left free";
}

TEST_F(OwnersTest, TheLastOfAGreedyOwnersRequestsMakesRoomInAFullQueue) {
  const auto greedy = Greedy(7, 4, 8);       // 3 run, 4 wait
  const auto first = AddOf("polite", 4, 8);  // runs at once
  EXPECT_TRUE(first->admitted);
  const auto second = AddOf("polite", 4, 8), third = AddOf("polite", 4, 8);
  EXPECT_THAT(greedy[6]->failed, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("of another key")));
  EXPECT_OK(greedy[3]->failed);
  auto more = Make(4, 8);
  more->whose.name = "greedy";
  EXPECT_THAT(scheduler_.Enqueue(more), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue is full")));
  EXPECT_OK(second->failed);
  EXPECT_OK(third->failed);
}

TEST_F(BatchSchedulerTest, AnOwnerHasItsShareOfTheQueue) {
  std::vector<std::shared_ptr<FakeGeneration>> requests;
  for (int i = 0; i < 6; ++i) {  // 3 run
    requests.push_back(Make(4, 2));
    requests.back()->whose = {.name = "greedy", .max_queued = 2};
    const absl::Status taken = scheduler_.Enqueue(requests.back());
    EXPECT_EQ(taken.code(), i < 5 ? absl::StatusCode::kOk : absl::StatusCode::kResourceExhausted) << taken;
  }
  Add(4, 2);
  EXPECT_EQ(scheduler_.num_queued(), 3);
}

TEST_F(BatchSchedulerTest, GivesALonePromptTheWholeStep) {
  const auto request = Add(40, 1);
  EXPECT_THAT(RunStep(), ElementsAre(16));
  EXPECT_THAT(RunStep(), ElementsAre(16));
  EXPECT_THAT(RunStep(), ElementsAre(8));
  EXPECT_TRUE(request->finished);
}

TEST_F(BatchSchedulerTest, CutsAPromptIntoEqualStepsForSeveralWorkers) {
  const auto request = Add(16, 1);
  // sqrt(16 rows / a cost of one row) = 4 steps
  for (int i = 0; i < 2; ++i) {
    const std::optional<StepPlan> first = scheduler_.NextStep(2, /*step_cost_rows=*/1), second = scheduler_.NextStep(2, 1);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->num_rows(), 4);
    EXPECT_EQ(second->num_rows(), 4);
    Finish(*first);
    Finish(*second);
  }
  EXPECT_TRUE(request->finished);
}

TEST_F(BatchSchedulerTest, CutsNoPromptForOneWorker) {
  Add(16, 1);
  EXPECT_EQ(scheduler_.NextStep(1, /*step_cost_rows=*/1)->num_rows(), 16);
}

TEST_F(BatchSchedulerTest, ForgetsExpertsBeforeTheFirstStepOfARequestAlone) {
  const auto request = Make(40, 1);
  request->forgets = true;
  ASSERT_OK(scheduler_.Enqueue(request));
  for (const bool forgets : {true, false, false}) {
    const std::optional<StepPlan> step = scheduler_.NextStep(1);
    ASSERT_TRUE(step.has_value());
    EXPECT_EQ(step->forget_experts, forgets);
    Finish(*step);
  }
}

TEST_F(BatchSchedulerTest, GivesPromptsAMicroBatchWhileSomebodyDecodes) {
  Add(3, 10);
  ASSERT_THAT(RunStep(), ElementsAre(3));
  Add(10, 1);
  EXPECT_THAT(RunStep(), ElementsAre(1, 4));
  EXPECT_THAT(RunStep(), ElementsAre(1, 4));
  EXPECT_THAT(RunStep(), ElementsAre(1, 2));
  EXPECT_THAT(RunStep(), ElementsAre(1));
}

TEST_F(BatchSchedulerTest, PutsSeveralShortPromptsIntoOneStep) {
  Add(5, 2);
  Add(6, 2);
  Add(9, 2);
  EXPECT_THAT(RunStep(), ElementsAre(5, 6, 5)) << "the third is cut where the step is full";
  EXPECT_THAT(RunStep(), ElementsAre(1, 1, 4));
}

TEST_F(BatchSchedulerTest, AdmitsInOrderOfArrivalAndRefusesWhatTheQueueCannotHold) {
  std::vector<std::shared_ptr<FakeGeneration>> requests;
  for (int i = 0; i < 7; ++i) requests.push_back(Add(2, 2));
  EXPECT_EQ(scheduler_.num_running(), 3);
  EXPECT_EQ(scheduler_.num_queued(), 4);
  EXPECT_THAT(scheduler_.Enqueue(Make(2, 2)), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("queue is full")));
  RunStep(), RunStep();
  RunStep();
  for (int i = 0; i < 7; ++i) EXPECT_EQ(requests[i]->admitted, i < 6) << i;
  RunAll();
  for (const auto& request : requests) EXPECT_TRUE(request->finished);
}

TEST_F(BatchSchedulerTest, ALargeRequestIsNotOvertakenBySmallOnesBehindIt) {
  const auto running = Add(60, 20);  // 20 of 32 blocks
  const auto large = Add(60, 20);
  const auto small = Add(2, 2);
  EXPECT_TRUE(running->admitted);
  EXPECT_FALSE(large->admitted);
  EXPECT_FALSE(small->admitted);
  RunAll();
  EXPECT_TRUE(large->finished);
  EXPECT_TRUE(small->finished);
}

TEST_F(BatchSchedulerTest, RefusesWhatNeverFitsTheCache) {
  EXPECT_THAT(scheduler_.Enqueue(Make(100, 29)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("KV cache")));
  EXPECT_OK(scheduler_.Enqueue(Make(100, 28)));
}

TEST_F(BatchSchedulerTest, CancelFreesSlotAndBlocksAtOnceWhereverTheRequestIs) {
  const auto decoding = Add(2, 10);
  RunStep();
  const auto in_prompt = Add(20, 10);
  RunStep();
  const auto third = Add(8, 8);
  const auto queued = Add(8, 8);
  ASSERT_FALSE(queued->admitted);
  const std::optional<StepPlan> in_flight = scheduler_.NextStep(1);
  ASSERT_TRUE(in_flight);
  for (const auto& request : {decoding, in_prompt, third, queued}) scheduler_.Cancel(request.get());
  EXPECT_EQ(scheduler_.num_running(), 0);
  EXPECT_EQ(scheduler_.num_queued(), 0);
  EXPECT_EQ(scheduler_.slots().free_blocks(), 32);
  const auto next = Add(4, 1);
  EXPECT_TRUE(next->admitted) << "without waiting for the step in flight";
  Finish(*in_flight);
  EXPECT_EQ(decoding->generated(), 2) << "a cancelled request hears nothing more";
  RunAll();
  EXPECT_TRUE(next->finished);
}

TEST_F(BatchSchedulerTest, EndsWhatIsPastItsDeadline) {
  const auto running = Make(4, 100);
  running->end_by = clock_.Now() + absl::Seconds(5);
  ASSERT_OK(scheduler_.Enqueue(running));
  const auto other = Add(4, 100);
  Add(4, 2);
  const auto queued = Make(4, 2);
  queued->end_by = clock_.Now() + absl::Seconds(3);
  ASSERT_OK(scheduler_.Enqueue(queued));
  EXPECT_EQ(scheduler_.NextDeadline(), queued->end_by);
  RunStep();
  clock_.Advance(absl::Seconds(4));
  scheduler_.ExpireDeadlines();
  EXPECT_THAT(queued->failed, StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("queue")));
  EXPECT_OK(running->failed);
  clock_.Advance(absl::Seconds(4));
  scheduler_.ExpireDeadlines();
  EXPECT_THAT(running->failed, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_OK(other->failed);
  EXPECT_EQ(scheduler_.NextDeadline(), absl::InfiniteFuture());
  const auto late = Make(4, 2);
  late->end_by = clock_.Now();
  EXPECT_THAT(scheduler_.Enqueue(late), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(BatchSchedulerTest, TokensThatWaitForOthersAreSentWhenTheirTimeIsOver) {
  const auto running = Add(4, 100);
  Add(4, 100);
  Add(4, 100);
  const auto queued = Add(4, 100);
  RunStep();
  running->send_by = clock_.Now() + absl::Milliseconds(3);
  queued->send_by = clock_.Now() + absl::Milliseconds(5);  // it ran before its worker was lost
  EXPECT_EQ(scheduler_.NextDeadline(), running->send_by);
  clock_.Advance(absl::Milliseconds(2));
  scheduler_.ExpireDeadlines();
  EXPECT_EQ(running->sent, 0);
  clock_.Advance(absl::Milliseconds(1));
  scheduler_.ExpireDeadlines();
  EXPECT_EQ(running->sent, 1);
  EXPECT_EQ(scheduler_.NextDeadline(), queued->send_by);
  clock_.Advance(absl::Milliseconds(2));
  scheduler_.ExpireDeadlines();
  EXPECT_EQ(queued->sent, 1);
  EXPECT_EQ(scheduler_.NextDeadline(), absl::InfiniteFuture());
}

TEST_F(BatchSchedulerTest, KeepsIndependentStepsInFlightUpToTheLimit) {
  Add(40, 4);
  const std::optional<StepPlan> first = scheduler_.NextStep(2), second = scheduler_.NextStep(2);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(second->sequences[0].first_position, 16) << "chunks of one prompt follow each other";
  EXPECT_FALSE(scheduler_.NextStep(2));
  Finish(*first);
  const std::optional<StepPlan> third = scheduler_.NextStep(2);
  ASSERT_TRUE(third);
  Finish(*second);
  EXPECT_FALSE(scheduler_.NextStep(2)) << "the next token depends on the step in flight";
  Finish(*third);
  EXPECT_TRUE(scheduler_.NextStep(2));
}

TEST_F(BatchSchedulerTest, ADecodingRequestIsInOneStepAtATime) {
  Add(4, 4);
  const std::optional<StepPlan> first = scheduler_.NextStep(4);
  const auto later = Add(4, 4);
  const std::optional<StepPlan> second = scheduler_.NextStep(4);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(second->sequences.size(), 1u);
  EXPECT_FALSE(scheduler_.NextStep(4));
  Finish(*first);
  Finish(*second);
  EXPECT_THAT(RunStep(), ElementsAre(1, 1)) << "both are ready, so they share a step";
}

TEST_F(BatchSchedulerTest, NamesTheBlocksUpToTheEndOfTheStepAndMarksDecoding) {
  Add(20, 9);
  const std::optional<StepPlan> prompt = scheduler_.NextStep(1);
  EXPECT_EQ(prompt->sequences[0].blocks.size(), 4u);
  EXPECT_FALSE(prompt->sequences[0].decoding);
  Finish(*prompt);
  RunStep();
  const std::optional<StepPlan> decode = scheduler_.NextStep(1);
  EXPECT_EQ(decode->sequences[0].blocks.size(), 6u);
  EXPECT_TRUE(decode->sequences[0].decoding);
  EXPECT_EQ(decode->sequences[0].first_position, 20);
}

TEST_F(BatchSchedulerTest, GoesOnFromAFinishedRequestsSequence) {
  const auto first = Add(20, 4);
  RunAll();
  std::vector<int32_t> longer(first->tokens().begin(), first->tokens().end());
  longer.push_back(7);
  const auto next = std::make_shared<FakeGeneration>(longer, 1);
  ASSERT_OK(scheduler_.Enqueue(next));
  EXPECT_EQ(next->cached, 23) << "the last sampled token was never computed";
  EXPECT_THAT(RunStep(), ElementsAre(2));
}

// Room for several prompts of 80 tokens.
class CommonBeginningsTest : public BatchSchedulerTest {
 protected:
  CommonBeginningsTest() : BatchSchedulerTest(Options()) {}
  static BatchSchedulerOptions Options() {
    BatchSchedulerOptions options = SmallOptions();
    options.slots.num_blocks = 100;
    return options;
  }
  static std::shared_ptr<FakeGeneration> SameAs(const FakeGeneration& first) {
    return std::make_shared<FakeGeneration>(std::vector<int32_t>(first.tokens().begin(), first.tokens().end()), 4);
  }
};

TEST_F(CommonBeginningsTest, AreComputedOnce) {
  const auto first = Add(80, 4);
  const auto same = SameAs(*first), forked = SameAs(*first);
  ASSERT_OK(scheduler_.Enqueue(same));
  ASSERT_OK(scheduler_.Enqueue(forked));
  EXPECT_FALSE(same->admitted || forked->admitted);
  const auto other = Add(8, 2);
  EXPECT_TRUE(other->admitted) << "nobody waits behind requests that wait for rows";
  RunStep();
  EXPECT_FALSE(same->admitted);
  RunStep();
  EXPECT_TRUE(same->admitted) << "fewer than 64 tokens are not worth the wait";
  EXPECT_EQ(same->cached, 16);
  RunAll();
  EXPECT_TRUE(first->finished && same->finished && forked->finished && other->finished);
  EXPECT_EQ(forked->cached, 79);
}

TEST_F(CommonBeginningsTest, NobodyWaitsForRowsOfARequestThatHasGone) {
  const auto first = Add(80, 4);
  const auto same = std::make_shared<FakeGeneration>(std::vector<int32_t>(first->tokens().begin(), first->tokens().end()), 4);
  ASSERT_OK(scheduler_.Enqueue(same));
  RunStep();
  scheduler_.Cancel(first.get());
  RunAll();
  EXPECT_TRUE(same->finished);
  EXPECT_EQ(same->cached, 16);
}

TEST_F(CommonBeginningsTest, WhoWaitsForRowsNeedsNoPlaceInTheQueue) {
  BatchSchedulerOptions options = Options();
  options.max_queued = 0;
  BatchScheduler scheduler(options, &clock_);
  const auto first = Make(80, 4);
  ASSERT_OK(scheduler.Enqueue(first));
  for (int i = 0; i < 2; ++i) EXPECT_OK(scheduler.Enqueue(SameAs(*first)));
  EXPECT_THAT(scheduler.Enqueue(SameAs(*first)), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(BatchSchedulerTest, OfAnOwnersRequestsTheLowestPriorityGoesFirst) {
  for (int i = 0; i < 3; ++i) Add(4, 8);
  const auto add = [&](int32_t urgency) {
    auto generation = Make(4, 8);
    generation->urgency = urgency;
    EXPECT_OK(scheduler_.Enqueue(generation));
    return generation;
  };
  const auto usual = add(0), late = add(5), urgent = add(-5), also_urgent = add(-5);
  std::vector<const FakeGeneration*> admitted;
  const auto look = [&] {
    for (const auto& each : {usual, late, urgent, also_urgent}) {
      if (each->admitted && std::ranges::find(admitted, each.get()) == admitted.end()) admitted.push_back(each.get());
    }
  };
  while (!RunStep().empty()) look();
  // Three places become free at once: of those the urgent ones are two.
  EXPECT_EQ(admitted.size(), 4u);
  EXPECT_EQ(admitted.back(), late.get());
}

TEST_F(BatchSchedulerTest, PromptsOfALowPriorityNumberGetTheRowsFirst) {
  const auto first = Add(40, 4);
  const auto urgent = Make(10, 4);
  urgent->urgency = -1;
  ASSERT_OK(scheduler_.Enqueue(urgent));
  EXPECT_THAT(RunStep(), ElementsAre(10, 6));
}

TEST_F(BatchSchedulerTest, ComputesAWholePromptThatIsScored) {
  const auto first = Add(20, 1);
  RunAll();
  const auto score =
      std::make_shared<FakeGeneration>(std::vector<int32_t>(first->tokens().begin(), first->tokens().begin() + 20), 0);
  score->score = true;
  ASSERT_OK(scheduler_.Enqueue(score));
  EXPECT_EQ(score->cached, 0);
  RunAll();
  EXPECT_TRUE(score->finished);
  EXPECT_EQ(score->num_logits, 19);
  EXPECT_THAT(score->rows, ElementsAre(std::pair<int64_t, int64_t>(0, 16), std::pair<int64_t, int64_t>(16, 4)));
}

TEST_F(BatchSchedulerTest, FailAllEndsEverybodyAndForgetsTheCaches) {
  const auto finished = Add(20, 1);
  RunAll();
  std::vector<std::shared_ptr<FakeGeneration>> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(Add(4, 4));
  const std::optional<StepPlan> step = scheduler_.NextStep(1);
  scheduler_.FailAll(Unavailable("worker 1 is lost"));
  for (const auto& request : requests) EXPECT_THAT(request->failed, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_OK(finished->failed);
  EXPECT_EQ(scheduler_.num_running() + scheduler_.num_queued() + scheduler_.num_in_flight(), 0);
  Finish(*step);  // late news of a step that was forgotten
  EXPECT_EQ(requests[0]->generated(), 0);
  const auto again =
      std::make_shared<FakeGeneration>(std::vector<int32_t>(finished->tokens().begin(), finished->tokens().end()), 1);
  ASSERT_OK(scheduler_.Enqueue(again));
  EXPECT_EQ(again->cached, 0);
}

class ResumeTest : public BatchSchedulerTest {
 protected:
  static constexpr absl::Duration kPatience = absl::Seconds(30);
  static BatchSchedulerOptions Patient() {
    BatchSchedulerOptions options = SmallOptions();
    options.resume_patience = kPatience;
    return options;
  }
  ResumeTest() : BatchSchedulerTest(Patient()) {}
  void Lose() { scheduler_.LoseCaches(Unavailable("worker 1 is lost")); }
};

TEST_F(ResumeTest, RowsOfKnownTokensAreComputedAgainAndTheRequestGoesOn) {
  const auto request = Add(5, 6);
  for (int i = 0; i < 3; ++i) RunStep();  // 5 + 3 tokens are known
  const std::optional<StepPlan> lost = scheduler_.NextStep(1);
  ASSERT_TRUE(lost.has_value());
  Lose();
  EXPECT_OK(request->failed);
  EXPECT_EQ(scheduler_.NextStep(1), std::nullopt) << "there are no caches";
  scheduler_.CachesReturned();
  const std::optional<StepPlan> again = scheduler_.NextStep(1);
  ASSERT_TRUE(again.has_value());
  ASSERT_EQ(again->sequences.size(), 1u);
  EXPECT_EQ(again->sequences[0].first_position, 0);
  EXPECT_EQ(again->sequences[0].token_ids.size(), 8u);
  ASSERT_EQ(again->sequences[0].logits.size(), 1u) << "of the last row, whose token is not known";
  EXPECT_EQ(again->sequences[0].logits[0].offset, 7);
  Finish(*lost);  // late news of a step that was forgotten
  EXPECT_EQ(request->generated(), 3);
  Finish(*again);
  RunAll();
  EXPECT_TRUE(request->finished);
  EXPECT_EQ(request->resumed, 1);
  EXPECT_EQ(scheduler_.num_resumed(), 1);
}

TEST_F(ResumeTest, WhoRanGoesBeforeWhoWaited) {
  std::vector<std::shared_ptr<FakeGeneration>> requests;
  for (int i = 0; i < 5; ++i) requests.push_back(Add(4, 4));  // 3 run
  RunStep();
  Lose();
  scheduler_.CachesReturned();
  RunStep();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(requests[i]->resumed, i < 3 ? 1 : 0) << i;
  EXPECT_FALSE(requests[3]->admitted);
  RunAll();
  for (const auto& request : requests) EXPECT_TRUE(request->finished);
}

TEST_F(ResumeTest, ARequestThatDoesNotResumeEndsWithTheLoss) {
  const auto running = Make(4, 4), waiting = Make(4, 4);
  running->may_resume = waiting->may_resume = false;
  ASSERT_OK(scheduler_.Enqueue(running));
  for (int i = 0; i < 2; ++i) Add(4, 4);
  ASSERT_OK(scheduler_.Enqueue(waiting));
  Lose();
  EXPECT_THAT(running->failed, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker 1")));
  EXPECT_THAT(waiting->failed, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker 1")));
  EXPECT_EQ(scheduler_.num_queued(), 2);
}

TEST_F(ResumeTest, PatienceEndsAndSaysWhy) {
  const auto ran = Add(4, 4);
  RunStep();
  Lose();
  clock_.Advance(kPatience / 2);
  const auto came = Add(4, 4);
  EXPECT_FALSE(came->admitted);
  clock_.Advance(kPatience / 2);
  scheduler_.ExpireDeadlines();
  EXPECT_THAT(ran->failed, StatusIs(absl::StatusCode::kUnavailable, AllOf(HasSubstr("worker 1"), HasSubstr("waited 30s"))));
  EXPECT_OK(came->failed);
  EXPECT_EQ(scheduler_.NextDeadline(), clock_.Now() + kPatience / 2);
  scheduler_.CachesReturned();
  clock_.Advance(kPatience);
  scheduler_.ExpireDeadlines();
  RunAll();
  EXPECT_TRUE(came->finished);
}

TEST_F(ResumeTest, AnotherLossBeforeTheCachesReturnLeavesThePatienceOfWhoWaits) {
  for (int i = 0; i < 3; ++i) Add(4, 4);
  const auto waiting = Add(4, 4);
  RunStep();
  Lose();
  clock_.Advance(kPatience / 2);
  Lose();
  clock_.Advance(kPatience / 2);
  scheduler_.ExpireDeadlines();
  EXPECT_THAT(waiting->failed, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("waited 30s")));
}

TEST_F(ResumeTest, PatienceIsTimeWithoutAFurtherRow) {
  const auto request = Add(20, 4);  // two steps of prompt
  Lose();
  clock_.Advance(kPatience / 2);
  scheduler_.CachesReturned();
  RunStep();  // a row that it did not have before the loss
  Lose();
  clock_.Advance(kPatience / 2);
  scheduler_.ExpireDeadlines();
  EXPECT_OK(request->failed);
  scheduler_.CachesReturned();
  RunStep();  // the same rows once more
  Lose();
  clock_.Advance(kPatience / 2);
  scheduler_.ExpireDeadlines();
  EXPECT_THAT(request->failed, StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(ResumeTest, AStepThatFailsAgainEndsItsRequests) {
  const auto request = Add(4, 4);
  RunStep();
  const absl::Status fault = absl::InternalError("the device does not work any more");
  ASSERT_TRUE(scheduler_.NextStep(1).has_value());
  scheduler_.LoseCaches(fault);
  const auto came = Add(4, 4);
  EXPECT_OK(request->failed) << "it may have been the device";
  scheduler_.CachesReturned();
  Lose();
  EXPECT_OK(request->failed) << "nobody's fault";
  scheduler_.CachesReturned();
  ASSERT_TRUE(scheduler_.NextStep(1).has_value());
  scheduler_.LoseCaches(fault);
  EXPECT_THAT(request->failed, StatusIs(absl::StatusCode::kInternal));
  EXPECT_OK(came->failed) << "its first";
}

TEST(BatchSchedulerLogits, AStepHoldsNoMoreLogitsThanAMessage) {
  FakeClock clock;
  BatchSchedulerOptions options = SmallOptions();
  options.max_logits = 2500;  // two whole rows of 1000
  BatchScheduler scheduler(options, &clock);
  std::vector<std::shared_ptr<FakeGeneration>> requests;
  for (int i = 0; i < 3; ++i) {
    requests.push_back(std::make_shared<FakeGeneration>(std::vector<int32_t>{i * 10, i * 10 + 1}, 6));
    requests.back()->top_n = 1000;
    ASSERT_OK(scheduler.Enqueue(requests.back()));
  }
  for (int i = 0; i < 30; ++i) {
    const std::optional<StepPlan> step = scheduler.NextStep(1);
    if (!step) break;
    StepOutcome outcome;
    for (const PlannedSequence& sequence : step->sequences) outcome.logits.resize(outcome.logits.size() + sequence.logits.size());
    EXPECT_LE(outcome.logits.size(), 2u);
    scheduler.OnStepDone(step->id, std::move(outcome));
    const auto [least, most] = std::minmax_element(requests.begin(), requests.end(),
                                                   [](const auto& a, const auto& b) { return a->generated() < b->generated(); });
    if (!(*most)->finished) {
      EXPECT_LE((*most)->generated() - (*least)->generated(), 2) << "nobody is left out for long";
    }
  }
  for (const auto& request : requests) EXPECT_TRUE(request->finished);
}

TEST(BatchSchedulerLogits, ScoringCutsTheChunkWhereTheMessageIsFull) {
  FakeClock clock;
  BatchSchedulerOptions options = SmallOptions();
  options.max_logits = 60;  // 5 rows of the 2 best
  BatchScheduler scheduler(options, &clock);
  const auto score = std::make_shared<FakeGeneration>(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7}, 0);
  score->score = true;
  ASSERT_OK(scheduler.Enqueue(score));
  const std::optional<StepPlan> step = scheduler.NextStep(1);
  EXPECT_EQ(step->sequences[0].token_ids.size(), 5u);
  EXPECT_EQ(step->sequences[0].logits.size(), 5u);
}

}  // namespace
}  // namespace ferry
