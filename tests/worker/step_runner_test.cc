#include "worker/step_runner.h"

#include <future>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/soon.h"
#include "tests/worker/tiny_model.h"

namespace ferry {
namespace {

using testing::HasSubstr;

// One worker without its network: a stage of layers [first, end), its queue and its runner.
struct Worker {
  Worker(int64_t first, int64_t end, int64_t num_slots = 0) {
    FileTensorSource source(Model(), first, end);
    StageOptions options = TinyStageOptions(Model(), first, end);
    options.expert_slot_bytes = num_slots * Model().layout.max_record_bytes();
    stage = Stage::Create(ops.get(), options, source, &link).value();
    runner = StepRunner::Create(stage.get(), &queue, [this](const absl::Status& why) { failures.push_back(why); }).value();
  }
  std::future<internal::v1::StepResponse> Submit(const internal::v1::StepRequest& request) {
    const auto promise = std::make_shared<std::promise<internal::v1::StepResponse>>();
    std::future<internal::v1::StepResponse> future = promise->get_future();
    runner->Submit(request, [promise](const internal::v1::StepResponse& response) { promise->set_value(response); });
    return future;
  }

  std::unique_ptr<Ops> ops = MakeOps(), host_ops = MakeOps();
  FakeLink link{&Model(), host_ops.get()};
  std::unique_ptr<Stage> stage;
  ActivationQueue queue{Model().config.n_embd, 256};
  std::vector<absl::Status> failures;  // the compute thread's, until an answer of it is here
  std::unique_ptr<StepRunner> runner;
};

internal::v1::StepRequest RunnerRequest(uint64_t epoch, uint64_t step, double timeout = 20) {
  internal::v1::StepRequest request;
  request.set_epoch(epoch);
  request.set_step(step);
  request.set_timeout_seconds(timeout);
  internal::v1::StepSequence* const sequence = request.add_sequences();
  sequence->set_num_tokens(2);
  sequence->add_token_ids(11);
  sequence->add_token_ids(12);
  sequence->add_blocks(0);
  sequence->add_logits()->set_offset(1);
  sequence->mutable_logits(0)->set_top_n(3);
  sequence->mutable_logits(0)->set_target(5);
  return request;
}
absl::StatusCode StepCode(const internal::v1::StepResponse& response) { return static_cast<absl::StatusCode>(response.code()); }
TEST(StepRunner, MeasuresTheLinkBetweenEpochsAlone) {
  Worker worker(0, 4, /*num_slots=*/4);
  ASSERT_OK_AND_ASSIGN(const ExpertCache::Measurement link, worker.runner->MeasureLink(absl::Milliseconds(1), Soon()));
  EXPECT_GT(link.bytes, 0);
  ASSERT_OK(worker.runner->BeginEpoch(3, nullptr, Soon()));
  EXPECT_THAT(worker.runner->MeasureLink(absl::Milliseconds(1), Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("epoch 3 is current")));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(3, 1)).get()), absl::StatusCode::kOk);
}

TEST(StepRunner, MeasuresNothingWithoutSlots) {
  Worker worker(0, 4);
  EXPECT_EQ(worker.runner->MeasureLink(absl::Milliseconds(1), Soon())->bytes, 0);
}

TEST(StepRunner, GivesUpAMeasurementThatTakesTooLong) {
  Worker worker(0, 4, /*num_slots=*/4);
  EXPECT_THAT(worker.runner->MeasureLink(absl::Seconds(1), Deadline::In(absl::ZeroDuration())),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(worker.runner->MeasureLink(absl::Milliseconds(1), Soon()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another measurement")));
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon())) << "it waits for the measurement";
}

TEST(StepRunner, AnswersStepsInOrder) {
  Worker worker(0, 4);
  ASSERT_OK(worker.runner->BeginEpoch(3, nullptr, Soon()));
  auto first = worker.Submit(RunnerRequest(3, 1)), second = worker.Submit(RunnerRequest(3, 2));
  const internal::v1::StepResponse response = first.get();
  EXPECT_EQ(StepCode(response), absl::StatusCode::kOk) << response.message();
  EXPECT_EQ(response.step(), 1u);
  ASSERT_EQ(response.logits_size(), 1);
  EXPECT_EQ(response.logits(0).ids_size(), 3);
  EXPECT_EQ(response.logits(0).logits().size(), 3 * sizeof(float));
  EXPECT_GT(response.experts().activated(), 0u);
  EXPECT_EQ(StepCode(second.get()), absl::StatusCode::kOk);
}

TEST(StepRunner, TellsOfStepsThatFailBeforeItAnswers) {
  Worker worker(0, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  internal::v1::StepRequest bad = RunnerRequest(1, 2);
  bad.mutable_sequences(0)->set_slot(999);
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 1)).get()), absl::StatusCode::kOk);
  EXPECT_EQ(StepCode(worker.Submit(bad).get()), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(worker.failures.size(), 1u);
  EXPECT_THAT(worker.failures[0], StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("slot")));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(7, 1)).get()), absl::StatusCode::kAborted);
  EXPECT_EQ(worker.failures.size(), 1u) << "a step of another epoch is given up";
}

TEST(StepRunner, AddsUpTheCountersOfItsSteps) {
  Worker worker(0, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  const uint64_t one = worker.Submit(RunnerRequest(1, 1)).get().experts().activated();
  const uint64_t two = worker.Submit(RunnerRequest(1, 2)).get().experts().activated();
  ASSERT_OK(worker.runner->BeginEpoch(2, nullptr, Soon()));  // the second step has certainly ended
  EXPECT_EQ(worker.runner->counters().activated(), one + two);
}

TEST(StepRunner, RefusesAStepOfAnotherEpoch) {
  Worker worker(0, 4);
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 1)).get()), absl::StatusCode::kAborted) << "none has begun";
  ASSERT_OK(worker.runner->BeginEpoch(2, nullptr, Soon()));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 1)).get()), absl::StatusCode::kAborted);
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(3, 1)).get()), absl::StatusCode::kAborted);
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(2, 1)).get()), absl::StatusCode::kOk);
}

TEST(StepRunner, RefusesAnEpochThatIsNotLater) {
  Worker worker(0, 4);
  ASSERT_OK(worker.runner->BeginEpoch(2, nullptr, Soon()));
  EXPECT_THAT(worker.runner->BeginEpoch(2, nullptr, Soon()), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(worker.runner->BeginEpoch(1, nullptr, Soon()), StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(worker.runner->epoch(), 2u);
}

TEST(StepRunner, RefusesStepsOutOfTurn) {
  Worker worker(0, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 2)).get()), absl::StatusCode::kInvalidArgument) << "step 1 is missing";
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 1)).get()), absl::StatusCode::kOk);
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 1)).get()), absl::StatusCode::kAborted) << "it is over";
}

TEST(StepRunner, GoesOnAfterABadStep) {
  Worker worker(0, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  internal::v1::StepRequest bad = RunnerRequest(1, 1);
  bad.mutable_sequences(0)->set_slot(99);
  const internal::v1::StepResponse refused = worker.Submit(bad).get();
  EXPECT_EQ(StepCode(refused), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("sequences[0].slot is 99"));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 2)).get()), absl::StatusCode::kOk);
}

TEST(StepRunner, TellsTheNextWorkerOfAStepThatFailed) {
  Worker worker(0, 2);
  ActivationQueue next(Model().config.n_embd, 256);
  next.BeginEpoch(1);
  ASSERT_OK(worker.runner->BeginEpoch(1, std::make_unique<LoopbackSink>(&next, Model().config.n_embd, 1), Soon()));
  internal::v1::StepRequest bad = RunnerRequest(1, 1);
  bad.mutable_sequences(0)->set_token_ids(0, 1 << 20);
  EXPECT_EQ(StepCode(worker.Submit(bad).get()), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(next.Next(1, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("token_ids")));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 2)).get()), absl::StatusCode::kOk);
  EXPECT_OK(next.Next(2, 0, Soon()));
}

TEST(StepRunner, EndsAStepWhoseHiddenStatesDoNotCome) {
  Worker worker(2, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  internal::v1::StepRequest request = RunnerRequest(1, 1, /*timeout=*/0.05);
  EXPECT_EQ(StepCode(worker.Submit(request).get()), absl::StatusCode::kDeadlineExceeded);
}

TEST(StepRunner, RefusesMoreHiddenStatesThanTheStepHasRows) {
  Worker worker(2, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  ASSERT_OK(worker.queue.Push(1, 1, 0, 3, std::string(3 * Model().config.n_embd * sizeof(float), '\0')));
  EXPECT_EQ(StepCode(worker.Submit(RunnerRequest(1, 1)).get()), absl::StatusCode::kInvalidArgument);
}

TEST(StepRunner, ANewEpochEndsTheStepsOfTheOldOne) {
  Worker worker(2, 4);
  ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
  auto waiting = worker.Submit(RunnerRequest(1, 1)), queued = worker.Submit(RunnerRequest(1, 2));
  absl::SleepFor(absl::Milliseconds(20));
  ASSERT_OK(worker.runner->BeginEpoch(2, nullptr, Soon()));
  EXPECT_EQ(StepCode(waiting.get()), absl::StatusCode::kAborted);
  EXPECT_EQ(StepCode(queued.get()), absl::StatusCode::kAborted);
}

TEST(StepRunner, AnswersEverythingBeforeItEnds) {
  std::future<internal::v1::StepResponse> waiting;
  {
    Worker worker(2, 4);
    ASSERT_OK(worker.runner->BeginEpoch(1, nullptr, Soon()));
    waiting = worker.Submit(RunnerRequest(1, 1));
  }
  EXPECT_EQ(StepCode(waiting.get()), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace ferry
