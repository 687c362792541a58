#include "coordinator/cluster/pipeline.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "tests/coordinator/fake_worker.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int64_t kVocab = 8;
constexpr auto kPatience = std::chrono::seconds(60);

class PipelineTest : public ::testing::Test {
 protected:
  void TearDown() override {
    pipeline_.reset();
    for (const auto& worker : workers_) worker->Kill();
  }

  void AddWorker(FakeWorker::Handler handler) { workers_.push_back(std::make_unique<FakeWorker>(std::move(handler))); }
  void AddEcho(bool offers_rings = false) {
    workers_.push_back(std::make_unique<FakeWorker>(
        [](const internal::v1::StepRequest& request) { return FakeWorker::Ok(request, kVocab); }, offers_rings));
  }
  absl::Status Begin() {
    PipelineOptions options = {
        .epoch = 7, .workers = {}, .vocab_size = kVocab, .step_timeout = absl::Seconds(30), .trace = trace_.get()};
    for (size_t i = 0; i < workers_.size(); ++i) {
      options.workers.push_back(
          {.id = WorkerId(static_cast<int32_t>(i)), .incarnation = Incarnation(100 + i), .address = workers_[i]->address()});
    }
    absl::StatusOr<std::unique_ptr<Pipeline>> pipeline = Pipeline::Begin(
        options, &clock_,
        [this](PipelineFailure failure) {
          const std::lock_guard lock(mutex_);
          EXPECT_FALSE(failure_) << "it fails once";
          failure_ = std::move(failure);
          changed_.notify_all();
        },
        &begin_failure_);
    if (pipeline.ok()) pipeline_ = *std::move(pipeline);
    return pipeline.status();
  }
  // Two sequences: a prompt of two whose last row's best 3 are wanted, and a decoding row whose whole logits are.
  static StepPlan TwoSequences() {
    StepPlan plan{.id = StepId(1), .forget_experts = true};
    plan.sequences.push_back({.slot = SlotId(2), .first_position = 0, .token_ids = {5, 6}, .blocks = {9}, .logits = {}});
    plan.sequences.back().logits.push_back({.offset = 1, .wanted = {.top_n = 3, .target = 4}});
    plan.sequences.push_back(
        {.slot = SlotId(0), .decoding = true, .first_position = 40, .token_ids = {7}, .blocks = {1, 2}, .logits = {}});
    plan.sequences.back().logits.push_back({.offset = 0, .wanted = {.top_n = kVocab}});
    return plan;
  }
  void Submit() {
    pipeline_->Submit(TwoSequences(), [this](StepOutcome outcome) {
      const std::lock_guard lock(mutex_);
      outcomes_.push_back(std::move(outcome));
      changed_.notify_all();
    });
  }
  bool WaitForOutcomes(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return outcomes_.size() >= count; });
  }
  PipelineFailure WaitForFailure() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return failure_.has_value(); });
    return failure_.value_or(PipelineFailure{});
  }

  bool HasFailed() {
    const std::lock_guard lock(mutex_);
    return failure_.has_value();
  }

  FakeClock clock_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::unique_ptr<TraceWriter> trace_;  // null: none
  std::unique_ptr<Pipeline> pipeline_;
  PipelineFailure begin_failure_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<StepOutcome> outcomes_;
  std::optional<PipelineFailure> failure_;
};

TEST_F(PipelineTest, TellsEachWorkerTheEpochAndItsSuccessor) {
  AddEcho(), AddEcho();
  ASSERT_OK(Begin());
  ASSERT_THAT(workers_[0]->epochs(), SizeIs(1));
  EXPECT_EQ(workers_[0]->epochs()[0].epoch(), 7u);
  EXPECT_EQ(workers_[0]->epochs()[0].incarnation(), 100u);
  EXPECT_EQ(workers_[0]->epochs()[0].next_address(), workers_[1]->address());
  EXPECT_EQ(workers_[0]->epochs()[0].next_incarnation(), 101u);
  EXPECT_EQ(workers_[1]->epochs()[0].next_address(), "");
  EXPECT_EQ(pipeline_->max_steps_in_flight(), 2);
}

TEST_F(PipelineTest, SendsTokensToTheFirstAndAsksTheLastForLogits) {
  AddEcho(), AddEcho(), AddEcho();
  ASSERT_OK(Begin());
  Submit();
  ASSERT_TRUE(WaitForOutcomes(1));
  for (size_t i = 0; i < 3; ++i) {
    const internal::v1::StepRequest step = workers_[i]->steps().at(0);
    EXPECT_EQ(step.epoch(), 7u);
    EXPECT_EQ(step.step(), 1u);
    EXPECT_EQ(step.timeout_seconds(), 30);
    EXPECT_TRUE(step.forget_experts());
    ASSERT_EQ(step.sequences_size(), 2);
    EXPECT_EQ(step.sequences(0).slot(), 2u);
    EXPECT_EQ(step.sequences(0).num_tokens(), 2u);
    EXPECT_EQ(step.sequences(1).first_position(), 40u);
    EXPECT_EQ(step.sequences(1).blocks_size(), 2);
    EXPECT_EQ(step.sequences(0).token_ids_size(), i == 0 ? 2 : 0);
    EXPECT_EQ(step.sequences(0).logits_size(), i == 2 ? 1 : 0);
  }
  const internal::v1::LogitsWanted wanted = workers_[2]->steps()[0].sequences(0).logits(0);
  EXPECT_EQ(wanted.offset(), 1u);
  EXPECT_EQ(wanted.top_n(), 3u);
  EXPECT_EQ(wanted.target(), 4u);
  EXPECT_FALSE(workers_[2]->steps()[0].sequences(1).logits(0).has_target());
}

TEST_F(PipelineTest, GivesBackLogitsAndTheSumOfTheCounters) {
  for (int i = 0; i < 2; ++i) {
    AddWorker([i](const internal::v1::StepRequest& request) {
      internal::v1::StepResponse response = FakeWorker::Ok(request, kVocab);
      response.mutable_experts()->set_activated(10 + i);
      if (i == 0) return response;
      const float logits[3] = {3, 2, 1};
      response.mutable_logits(0)->set_logits(logits, sizeof(logits));
      response.mutable_logits(0)->set_log_sum_exp(4);
      return response;
    });
  }
  ASSERT_OK(Begin());
  Submit();
  ASSERT_TRUE(WaitForOutcomes(1));
  EXPECT_EQ(outcomes_[0].experts.activated(), 21u);
  ASSERT_THAT(outcomes_[0].logits, SizeIs(2));
  EXPECT_THAT(outcomes_[0].logits[0].ids, testing::ElementsAre(0, 1, 2));
  EXPECT_THAT(outcomes_[0].logits[0].logits, testing::ElementsAre(3, 2, 1));
  EXPECT_EQ(outcomes_[0].logits[0].log_sum_exp, 4);
  EXPECT_THAT(outcomes_[0].logits[1].ids, SizeIs(0));
  EXPECT_THAT(outcomes_[0].logits[1].logits, SizeIs(kVocab));
}

TEST_F(PipelineTest, WritesTheSpansOfAStepThatIsTraced) {
  const std::string path = ::testing::TempDir() + "/pipeline-trace-" + std::to_string(getpid());
  ASSERT_OK_AND_ASSIGN(trace_, TraceWriter::Create(path));
  AddWorker([](const internal::v1::StepRequest& request) {
    EXPECT_TRUE(request.trace());
    internal::v1::StepResponse response = FakeWorker::Ok(request, kVocab);
    internal::v1::TraceSpan* const span = response.add_spans();
    span->set_name("MatMul");
    span->set_track(internal::v1::TraceSpan::COMPUTE);
    span->set_layer(3);
    span->set_begin_unix_ns(absl::ToUnixNanos(absl::Now()));
    span->set_duration_ns(2500);
    return response;
  });
  ASSERT_OK(Begin());
  Submit();
  ASSERT_TRUE(WaitForOutcomes(1));
  pipeline_.reset();
  trace_.reset();
  const nlohmann::json events = nlohmann::json::parse(std::ifstream(path));
  std::filesystem::remove(path);
  const auto span = std::find_if(events.begin(), events.end(), [](const auto& event) { return event["name"] == "MatMul"; });
  ASSERT_NE(span, events.end());
  EXPECT_EQ((*span)["ph"], "X");
  EXPECT_EQ((*span)["dur"], 2.5);
  EXPECT_EQ((*span)["args"]["layer"], 3);
  const auto has = [&](const char* name, const char* phase) {
    return std::count_if(events.begin(), events.end(),
                         [&](const auto& event) { return event["name"] == name && event["ph"] == phase; });
  };
  EXPECT_EQ(has("step of 3 rows", "b"), 1);
  EXPECT_EQ(has("step of 3 rows", "e"), 1);
}

TEST_F(PipelineTest, NumbersStepsWithoutGapsAndKeepsTheirOrder) {
  AddEcho(), AddEcho();
  ASSERT_OK(Begin());
  for (int i = 0; i < 50; ++i) Submit();
  ASSERT_TRUE(WaitForOutcomes(50));
  for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(workers_[1]->steps()[i].step(), i + 1);
}

TEST_F(PipelineTest, AStepIsDoneWhenEveryWorkerHasAnswered) {
  std::mutex gate;
  gate.lock();
  AddWorker([&](const internal::v1::StepRequest& request) {
    const std::lock_guard wait(gate);
    return FakeWorker::Ok(request, kVocab);
  });
  AddEcho();
  ASSERT_OK(Begin());
  Submit();
  std::unique_lock lock(mutex_);
  EXPECT_FALSE(changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return !outcomes_.empty(); }));
  lock.unlock();
  gate.unlock();
  EXPECT_TRUE(WaitForOutcomes(1));
}

TEST_F(PipelineTest, AWorkerThatDiesIsLost) {
  AddEcho();
  AddWorker([](const internal::v1::StepRequest&) { return std::nullopt; });
  ASSERT_OK(Begin());
  Submit();
  workers_[1]->Kill();
  const PipelineFailure failure = WaitForFailure();
  EXPECT_THAT(failure.status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker 1 is lost")));
  EXPECT_EQ(failure.suspect, WorkerId(1));
  EXPECT_TRUE(failure.lost);
}

TEST_F(PipelineTest, AStepThatFailsEndsThePipelineWithItsReason) {
  AddEcho();
  AddWorker([](const internal::v1::StepRequest& request) {
    internal::v1::StepResponse response;
    response.set_epoch(request.epoch());
    response.set_step(request.step());
    response.set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
    response.set_message("the device is full");
    return response;
  });
  ASSERT_OK(Begin());
  Submit();
  const PipelineFailure failure = WaitForFailure();
  EXPECT_THAT(failure.status,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("worker 1 failed in step 1: the device is full")));
  EXPECT_FALSE(failure.lost);
}

TEST_F(PipelineTest, AStepThatTakesTooLongNamesTheWorkerThatHangs) {
  AddEcho();
  AddWorker([](const internal::v1::StepRequest&) { return std::nullopt; });
  // Nobody sees when the pipeline has taken worker 0's answer: a busy machine gets more time for it.
  PipelineFailure failure;
  for (auto patience = std::chrono::milliseconds(50); patience < kPatience; patience *= 4) {
    pipeline_.reset();
    failure_.reset();
    ASSERT_OK(Begin());
    clock_.Advance(absl::Seconds(100));
    pipeline_->CheckTimeout();  // nothing is in flight
    const size_t before = workers_[1]->steps().size();
    Submit();
    while (workers_[1]->steps().size() == before) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(patience);
    clock_.Advance(absl::Seconds(30));
    pipeline_->CheckTimeout();
    EXPECT_FALSE(HasFailed());
    clock_.Advance(absl::Seconds(1));
    pipeline_->CheckTimeout();
    failure = WaitForFailure();
    if (absl::StrContains(failure.status.message(), "worker 1")) break;
  }
  EXPECT_THAT(failure.status, StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("worker 1")));
  EXPECT_FALSE(failure.lost);
}

struct Nonsense {
  const char* what;
  std::function<void(internal::v1::StepResponse&)> change;
};
class PipelineNonsense : public PipelineTest, public ::testing::WithParamInterface<Nonsense> {};
TEST_P(PipelineNonsense, IsRefused) {
  AddWorker([](const internal::v1::StepRequest& request) {
    internal::v1::StepResponse response = FakeWorker::Ok(request, kVocab);
    GetParam().change(response);
    return response;
  });
  ASSERT_OK(Begin());
  Submit();
  EXPECT_THAT(WaitForFailure().status, StatusIs(absl::StatusCode::kInternal)) << GetParam().what;
  EXPECT_TRUE(outcomes_.empty());
}
INSTANTIATE_TEST_SUITE_P(
    All, PipelineNonsense,
    ::testing::Values(Nonsense{"another epoch", [](auto& r) { r.set_epoch(6); }},
                      Nonsense{"another step", [](auto& r) { r.set_step(2); }},
                      Nonsense{"rows missing", [](auto& r) { r.mutable_logits()->RemoveLast(); }},
                      Nonsense{"a row too many", [](auto& r) { r.add_logits(); }},
                      Nonsense{"half a number", [](auto& r) { r.mutable_logits(0)->mutable_logits()->pop_back(); }},
                      Nonsense{"ids for whole rows", [](auto& r) { r.mutable_logits(1)->add_ids(1); }},
                      Nonsense{"ids missing", [](auto& r) { r.mutable_logits(0)->clear_ids(); }},
                      Nonsense{"a token that is none", [](auto& r) { r.mutable_logits(0)->set_ids(1, 3062453784u); }},
                      Nonsense{"an unknown code", [](auto& r) { r.set_code(13), r.set_message("bug"); }}));

TEST_F(PipelineTest, AWorkerThatCannotBeReachedIsLost) {
  AddEcho(), AddEcho();
  workers_[0]->Kill();
  EXPECT_THAT(Begin(), testing::Not(IsOk()));
  EXPECT_EQ(begin_failure_.suspect, WorkerId(0));
  EXPECT_TRUE(begin_failure_.lost);
  EXPECT_FALSE(failure_);
}

TEST_F(PipelineTest, EndsWithStepsInFlight) {
  AddWorker([](const internal::v1::StepRequest&) { return std::nullopt; });
  ASSERT_OK(Begin());
  for (int i = 0; i < 5; ++i) Submit();
  pipeline_.reset();
  EXPECT_TRUE(outcomes_.empty());
  EXPECT_FALSE(failure_);
}

TEST_F(PipelineTest, AsksAWorkerToEnd) {
  AddEcho();
  EXPECT_OK(ShutdownWorker({.id = WorkerId(0), .incarnation = Incarnation(100), .address = workers_[0]->address()}, nullptr,
                           absl::Seconds(5)));
  EXPECT_TRUE(workers_[0]->asked_to_end());
}

// --------------------------------------------------------------------------------------------------- through shared memory

TEST_F(PipelineTest, StepsOfWorkersOfThisHostGoThroughSharedMemory) {
  AddEcho(/*offers_rings=*/true), AddEcho();
  ASSERT_OK(Begin());
  for (int i = 0; i < 50; ++i) {
    Submit();
    ASSERT_TRUE(WaitForOutcomes(i + 1));
  }
  EXPECT_EQ(workers_[0]->steps().size(), 50u);
  EXPECT_EQ(workers_[0]->steps_by_stream(), 0);
  EXPECT_EQ(workers_[1]->steps_by_stream(), 50) << "a worker that offers no rings";
  EXPECT_FALSE(HasFailed());
}

TEST_F(PipelineTest, AWorkerThatDiesIsLostThoughItsStepsGoThroughSharedMemory) {
  AddEcho(/*offers_rings=*/true);
  ASSERT_OK(Begin());
  Submit();
  ASSERT_TRUE(WaitForOutcomes(1));
  workers_[0]->Kill();
  const PipelineFailure failure = WaitForFailure();
  EXPECT_THAT(failure.status, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker 0")));
  EXPECT_TRUE(failure.lost);
}

TEST_F(PipelineTest, BytesThatAreNoAnswerFailThePipelineAndNameTheWorker) {
  AddEcho(/*offers_rings=*/true);
  ASSERT_OK(Begin());
  workers_[0]->SendRaw("\xff\xff\xff");
  EXPECT_THAT(WaitForFailure().status, StatusIs(absl::StatusCode::kInternal, HasSubstr("worker 0")));
}

TEST_F(PipelineTest, AnAnswerToNoStepFailsThePipeline) {
  AddEcho(/*offers_rings=*/true);
  ASSERT_OK(Begin());
  workers_[0]->SendRaw(internal::v1::StepResponse().SerializeAsString() + std::string("\x08\x07", 2));  // epoch 7
  EXPECT_THAT(WaitForFailure().status, StatusIs(absl::StatusCode::kInternal, HasSubstr("none is under way")));
}

TEST_F(PipelineTest, ANewEpochHasRingsOfItsOwn) {
  AddEcho(/*offers_rings=*/true);
  for (int epoch = 0; epoch < 3; ++epoch) {
    pipeline_.reset();
    ASSERT_OK(Begin());
    Submit();
    ASSERT_TRUE(WaitForOutcomes(epoch + 1));
  }
}

}  // namespace
}  // namespace ferry
