#include "coordinator/cluster/cluster_controller.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "common/machine_id.h"
#include "common/model/model_header.h"
#include "coordinator/experts/expert_engine.h"
#include "tests/coordinator/fake_worker.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kFingerprint = 4711;

// A request that never ends by itself; remembers whether health was down when it was ended.
class EndlessGeneration final : public Generation {
 public:
  explicit EndlessGeneration(const std::atomic<bool>* serving) : serving_(*serving) {}
  int64_t prompt_tokens() const override { return 2; }
  int64_t reserve_tokens() const override { return 100; }
  bool may_reuse_prefix() const override { return true; }
  absl::Time deadline() const override { return absl::InfiniteFuture(); }
  bool forgets_experts() const override { return false; }
  std::span<const int32_t> tokens() const override { return tokens_; }
  std::optional<LogitsRequest> LogitsAt(int64_t position) const override {
    return position == 0 ? std::nullopt : std::optional(LogitsRequest{.top_n = 1});
  }
  void OnAdmitted(int64_t) override {}
  bool OnRows(int64_t, int64_t, std::span<LogitsResult>, const v1::ExpertCounters&) override {
    if (tokens_.size() < 90) tokens_.push_back(1);
    return false;
  }
  void OnFailed(const absl::Status& status) override {
    const std::lock_guard lock(mutex_);
    end_ = status;
    served_at_end_ = serving_;
    ended_.notify_all();
  }
  absl::Status WaitForEnd() {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, std::chrono::seconds(60), [&] { return end_.has_value(); });
    return end_.value_or(absl::UnknownError("it did not end"));
  }
  bool served_at_end() {
    const std::lock_guard lock(mutex_);
    return served_at_end_;
  }

 private:
  const std::atomic<bool>& serving_;
  std::vector<int32_t> tokens_ = {1, 2};
  std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<absl::Status> end_;
  bool served_at_end_ = false;
};

class ClusterControllerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(file));
    header_ = ModelHeaderOf(file);
    ASSERT_OK_AND_ASSIGN(const ModelSizes sizes, ModelSizesOf(file, config_));
    ASSERT_OK_AND_ASSIGN(Placement placement,
                         PlanPlacement(config_, sizes, {.num_workers = 2, .tensor_overrides = {"blk.1.ffn_.*_exps=cpu"}}));
    ASSERT_OK_AND_ASSIGN(const std::unique_ptr<ThreadPool> pool, ThreadPool::Create({.num_threads = 1, .pin = false}));
    ASSERT_OK_AND_ASSIGN(store_, ExpertStore::Load(file, config_, *pool, [](const LoadProgress&) {}));
    ASSERT_OK_AND_ASSIGN(ops_, CreateOps({.kind = "reference", .num_threads = 1, .pin_threads = false}));
    engine_ = std::make_unique<ExpertEngine>(store_.get(), ops_.get(), config_.expert.glu, config_.n_embd);
    ASSERT_OK_AND_ASSIGN(exchange_, ExpertExchange::Create(store_.get(), engine_.get(), PlannerRates{},
                                                           "ferry-controller-test-" + std::to_string(getpid())));
    ASSERT_OK_AND_ASSIGN(loop_, GenerationLoop::Create({.vocab_size = config_.vocab_size,
                                                        .slots = {.num_slots = 4, .num_blocks = 100},
                                                        .resume_patience = resume_patience_},
                                                       &clock_, "loading"));
    absl::StatusOr<std::unique_ptr<ClusterController>> controller =
        ClusterController::Create(ClusterOptions{.model = config_,
                                                 .model_header = header_,
                                                 .fingerprint = kFingerprint,
                                                 .placement = std::move(placement),
                                                 .heartbeat_interval = absl::Seconds(1),
                                                 .heartbeat_timeout = absl::Seconds(10),
                                                 .step_timeout = absl::Seconds(60),
                                                 .before_first_epoch =
                                                     [this](const auto& workers) {
                                                       EXPECT_EQ(workers.size(), 2u);
                                                       served_when_measured_ = serving_.load();
                                                       ++measured_;
                                                     }},
                                  loop_.get(), &clock_, [this](bool serving) { serving_ = serving; });
    ASSERT_OK(controller);
    controller_ = *std::move(controller);
    controller_->Open(store_.get(), exchange_.get());
    for (int i = 0; i < 2; ++i) AddProcess();
  }
  void TearDown() override {
    controller_->Stop(Unavailable("end of test"));
    for (const auto& process : processes_) process->Kill();
  }

  void AddProcess() {
    processes_.push_back(std::make_unique<FakeWorker>(
        [this](const internal::v1::StepRequest& request) -> std::optional<internal::v1::StepResponse> {
          if (hang_) return std::nullopt;
          absl::SleepFor(absl::Milliseconds(1));
          return FakeWorker::Ok(request, config_.vocab_size);
        }));
  }
  internal::v1::RegisterRequest RequestOf(int process) {
    internal::v1::RegisterRequest request;
    request.set_incarnation(100 + process);
    request.set_machine(MachineId());
    request.set_address(processes_[process]->address());
    request.set_device("fake");
    request.set_expert_transport("grpc");
    return request;
  }
  absl::StatusOr<internal::v1::RegisterResponse> Register(int process) {
    internal::v1::RegisterResponse response;
    RETURN_IF_ERROR(controller_->Register(RequestOf(process), &response));
    return response;
  }
  absl::Status Beat(uint32_t worker, int process, const std::string& state = "ready") {
    internal::v1::HeartbeatRequest request;
    request.set_worker_id(worker);
    request.set_incarnation(100 + process);
    request.set_state(state);
    internal::v1::HeartbeatResponse response;
    return controller_->Heartbeat(request, &response);
  }
  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 10000; ++i) {
      if (condition()) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }
  void Serve() {
    for (int i = 0; i < 2; ++i) {
      ASSERT_OK(Register(i));
      ASSERT_OK(Beat(i, i));
    }
    ASSERT_TRUE(Eventually([&] { return serving_.load(); }));
  }

  absl::Duration resume_patience_;
  FakeClock clock_;
  ModelConfig config_;
  std::string header_;
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<ExpertEngine> engine_;
  std::unique_ptr<ExpertExchange> exchange_;
  std::atomic<bool> serving_{false}, hang_{false}, served_when_measured_{false};
  std::atomic<int> measured_{0};
  std::unique_ptr<GenerationLoop> loop_;
  std::vector<std::unique_ptr<FakeWorker>> processes_;
  std::unique_ptr<ClusterController> controller_;
};

TEST_F(ClusterControllerTest, HasTimeForMeasurementsOnceBeforeItServes) {
  Serve();
  EXPECT_EQ(measured_, 1);
  EXPECT_FALSE(served_when_measured_);
  processes_[1]->Kill();
  ASSERT_TRUE(Eventually([&] { return !serving_; }));
  ASSERT_TRUE(Eventually([&] { return controller_->Workers()[1].info.state() == "lost"; }));
  AddProcess();
  ASSERT_OK(Register(2));
  ASSERT_TRUE(Eventually([&] {
    clock_.Advance(absl::Milliseconds(100));
    EXPECT_OK(Beat(0, 0));
    EXPECT_OK(Beat(1, 2));
    return serving_.load();
  }));
  EXPECT_EQ(measured_, 1);
}

TEST_F(ClusterControllerTest, TellsAWorkerItsPartOfTheModel) {
  ASSERT_OK_AND_ASSIGN(const internal::v1::RegisterResponse response, Register(0));
  EXPECT_EQ(response.worker_id(), 0u);
  EXPECT_EQ(response.num_workers(), 2u);
  EXPECT_EQ(response.first_layer(), 0u);
  EXPECT_EQ(response.end_layer(), 3u);
  EXPECT_EQ(response.model(), header_);
  EXPECT_GT(response.cache().num_blocks(), 0u);
  EXPECT_EQ(response.model_fingerprint(), kFingerprint);
  ASSERT_EQ(response.overrides_size(), 1);
  EXPECT_EQ(response.overrides(0).layer(), 1u);
  EXPECT_EQ(response.overrides(0).place(), internal::v1::ExpertOverride::HOST);
}

TEST_F(ClusterControllerTest, ChoosesSharedMemoryAndWithoutCertificatesNoOtherHost) {
  internal::v1::RegisterRequest request = RequestOf(0);
  request.set_expert_transport("auto");
  internal::v1::RegisterResponse response;
  ASSERT_OK(controller_->Register(request, &response));
  EXPECT_EQ(response.expert_transport(), "shm");
  EXPECT_FALSE(response.descriptor_key().empty());
  request = RequestOf(1);
  request.set_expert_transport("auto");
  request.set_machine("another");
  request.set_address("10.0.0.2:4711");
  EXPECT_THAT(controller_->Register(request, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no certificates for workers of other hosts")));
}

TEST_F(ClusterControllerTest, RefusesWhatDoesNotFit) {
  internal::v1::RegisterResponse response;
  internal::v1::RegisterRequest request = RequestOf(0);
  request.set_model_fingerprint(kFingerprint + 1);
  EXPECT_THAT(controller_->Register(request, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another model")));
  request = RequestOf(0);
  request.set_expert_transport("carrier pigeon");
  EXPECT_THAT(controller_->Register(request, &response),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expert_transport")));
  request = RequestOf(0);
  request.set_expert_transport("shm");
  request.set_machine("another");
  request.set_address("10.0.0.2:4711");
  EXPECT_THAT(controller_->Register(request, &response), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another host")));
  request = RequestOf(0);
  request.set_machine("another");
  EXPECT_THAT(controller_->Register(request, &response), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--listen")));
  request = RequestOf(0);
  request.clear_address();
  EXPECT_THAT(controller_->Register(request, &response), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("address")));
  request = RequestOf(0);
  request.set_wanted_worker_id(4294967295u);
  EXPECT_THAT(controller_->Register(request, &response), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("wanted")));
  EXPECT_THAT(Beat(7, 0), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ClusterControllerTest, ServesOnceAllAreReady) {
  EXPECT_EQ(controller_->state(), "loading");
  ASSERT_OK(Register(0));
  ASSERT_OK(Register(1));
  ASSERT_OK(Beat(0, 0));
  ASSERT_OK(Beat(1, 1, "loading"));
  absl::SleepFor(absl::Milliseconds(150));
  EXPECT_FALSE(serving_);
  ASSERT_OK(Beat(1, 1));
  EXPECT_TRUE(Eventually([&] { return serving_.load(); }));
  EXPECT_TRUE(controller_->WaitUntilServing(absl::InfinitePast()));
  EXPECT_EQ(controller_->state(), "serving");
}

TEST_F(ClusterControllerTest, AWorkerThatDiesEndsAllRequestsAfterHealthIsDown) {
  Serve();
  std::vector<std::shared_ptr<EndlessGeneration>> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(std::make_shared<EndlessGeneration>(&serving_));
    loop_->Submit(requests.back());
  }
  ASSERT_TRUE(Eventually([&] { return loop_->stats().generated_tokens > 3; }));
  const Stopwatch killed;
  processes_[1]->Kill();
  for (const auto& request : requests) {
    EXPECT_THAT(request->WaitForEnd(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("worker 1")));
    EXPECT_FALSE(request->served_at_end());
  }
  EXPECT_LT(killed.Elapsed(), absl::Seconds(2));
  EXPECT_TRUE(Eventually([&] { return controller_->Workers()[1].info.state() == "lost"; }));
  EXPECT_EQ(controller_->state(), "degraded");
  EXPECT_THAT(Beat(1, 1), StatusIs(absl::StatusCode::kAborted)) << "a lost process stays lost";
}

TEST_F(ClusterControllerTest, ServesAgainWhenThePlaceIsTaken) {
  Serve();
  processes_[1]->Kill();
  ASSERT_TRUE(Eventually([&] { return !serving_; }));
  ASSERT_TRUE(Eventually([&] { return controller_->Workers()[1].info.state() == "lost"; }));
  AddProcess();
  ASSERT_OK_AND_ASSIGN(const internal::v1::RegisterResponse response, Register(2));
  EXPECT_EQ(response.worker_id(), 1u);
  ASSERT_OK(Beat(1, 2));
  // The pause between epochs is measured by the clock of the test.
  ASSERT_TRUE(Eventually([&] {
    clock_.Advance(absl::Milliseconds(100));
    EXPECT_OK(Beat(0, 0));
    EXPECT_OK(Beat(1, 2));
    return serving_.load();
  }));
  EXPECT_EQ(processes_[0]->epochs().back().epoch(), 2u);
  EXPECT_EQ(processes_[0]->epochs().back().next_address(), processes_[2]->address());
}

TEST_F(ClusterControllerTest, AWorkerThatHangsEndsItsRequestsWithDeadlineExceeded) {
  Serve();
  hang_ = true;
  const auto request = std::make_shared<EndlessGeneration>(&serving_);
  loop_->Submit(request);
  ASSERT_TRUE(Eventually([&] { return loop_->stats().running == 1; }));
  clock_.Advance(absl::Seconds(9));
  ASSERT_OK(Beat(0, 0));
  clock_.Advance(absl::Seconds(2));
  EXPECT_THAT(request->WaitForEnd(), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("worker 1")));
  EXPECT_FALSE(request->served_at_end());
}

TEST_F(ClusterControllerTest, AStepOverItsTimeBeginsANewEpochWithTheSameWorkers) {
  Serve();
  hang_ = true;
  const auto request = std::make_shared<EndlessGeneration>(&serving_);
  loop_->Submit(request);
  ASSERT_TRUE(Eventually([&] { return processes_[1]->steps().size() == 1; }));
  for (int i = 0; i < 13; ++i) {
    clock_.Advance(absl::Seconds(5));
    ASSERT_OK(Beat(0, 0));
    ASSERT_OK(Beat(1, 1));
  }
  EXPECT_THAT(request->WaitForEnd(), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("step 1")));
  hang_ = false;
  EXPECT_TRUE(Eventually([&] {
    clock_.Advance(absl::Milliseconds(100));
    EXPECT_OK(Beat(0, 0));
    EXPECT_OK(Beat(1, 1));
    return serving_ && processes_[0]->epochs().size() == 2;
  }));
}

TEST_F(ClusterControllerTest, NobodyTakesThePlaceOfAProcessThatIsThere) {
  Serve();
  AddProcess();
  internal::v1::RegisterRequest request = RequestOf(2);
  request.set_wanted_worker_id(0);
  internal::v1::RegisterResponse response;
  EXPECT_THAT(controller_->Register(request, &response), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("still there")));
  EXPECT_THAT(Register(0), StatusIs(absl::StatusCode::kAborted)) << "nor does its own incarnation";
  EXPECT_OK(Beat(0, 0));
  EXPECT_TRUE(serving_);
}

TEST_F(ClusterControllerTest, ARestartedProcessNeedNotWaitUntilTheOneBeforeIsMissed) {
  ASSERT_OK(Register(0));  // it loads: no stream tells that it is gone
  ASSERT_OK(Register(1));
  processes_[0]->Kill();
  AddProcess();
  internal::v1::RegisterRequest request = RequestOf(2);
  request.set_wanted_worker_id(0);
  internal::v1::RegisterResponse response;
  ASSERT_OK(controller_->Register(request, &response));
  EXPECT_EQ(response.worker_id(), 0u);
  EXPECT_THAT(Beat(0, 0, "loading"), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(ClusterControllerTest, StopEndsRequestsAndTakesNobodyIn) {
  Serve();
  const auto request = std::make_shared<EndlessGeneration>(&serving_);
  loop_->Submit(request);
  controller_->Stop(Unavailable("the coordinator is ending"));
  EXPECT_THAT(request->WaitForEnd(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(serving_);
  EXPECT_THAT(Register(0), StatusIs(absl::StatusCode::kUnavailable));
}

class PatientClusterTest : public ClusterControllerTest {
 protected:
  PatientClusterTest() { resume_patience_ = absl::Minutes(10); }
};

TEST_F(PatientClusterTest, StopEndsRequestsThatWaitForALostWorker) {
  Serve();
  const auto request = std::make_shared<EndlessGeneration>(&serving_);
  loop_->Submit(request);
  ASSERT_TRUE(Eventually([&] { return loop_->stats().running == 1; }));
  processes_[1]->Kill();
  ASSERT_TRUE(Eventually([&] { return controller_->Workers()[1].info.state() == "lost"; }));
  ASSERT_TRUE(Eventually([&] { return loop_->stats().queued == 1; }));
  controller_->Stop(Unavailable("the coordinator is ending"));
  EXPECT_THAT(request->WaitForEnd(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("ending")));
}

}  // namespace
}  // namespace ferry
