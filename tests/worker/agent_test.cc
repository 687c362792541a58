// A worker's registration and heartbeats; the test plays the coordinator.

#include "worker/agent.h"

#include <grpcpp/grpcpp.h>

#include <atomic>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/rpc/channels.h"
#include "common/rpc/rpc_deadline.h"
#include "tests/testing/socket_folder.h"
#include "tests/worker/served_worker.h"

namespace ferry {
namespace {

using testing::HasSubstr;

class FakeCoordinator final : public internal::v1::Cluster::Service {
 public:
  FakeCoordinator() { Start(); }
  ~FakeCoordinator() override { Stop(); }
  void Start() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(folder_.address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    stub_ = internal::v1::Cluster::NewStub(
        ConnectPeer(folder_.address(), NodeRole::kCoordinator, nullptr, {.quick_reconnects = true}));
  }
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(RpcDeadline(absl::ZeroDuration()));
    server_.reset();
  }
  internal::v1::Cluster::StubInterface* stub() { return stub_.get(); }

  grpc::Status Register(grpc::ServerContext*, const internal::v1::RegisterRequest*,
                        internal::v1::RegisterResponse* response) override {
    if (full) return ToGrpcStatus(FailedPrecondition("the cluster is complete"));
    if (loading-- > 0) return ToGrpcStatus(Unavailable("the coordinator is loading the experts: 12 %%"));
    response->set_worker_id(3);
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const internal::v1::HeartbeatRequest* request,
                         internal::v1::HeartbeatResponse*) override {
    ++heartbeats;
    if (request->incarnation() != 5 || request->worker_id() != 3 || request->state() != "ready") ++wrong;
    if (refuse) return ToGrpcStatus(Aborted("that incarnation is over"));
    return grpc::Status::OK;
  }
  std::atomic<int> loading{0}, heartbeats{0}, wrong{0};
  std::atomic<bool> full{false}, refuse{false};

 private:
  const SocketFolder folder_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Cluster::Stub> stub_;
};

class HeartbeatTest : public testing::Test {
 protected:
  std::unique_ptr<Agent> Beat(absl::Duration timeout, bool same_machine) {
    return Agent::Start(
               coordinator_.stub(),
               Agent::Options{.worker_id = 3,
                              .incarnation = Incarnation(5),
                              .interval = absl::Milliseconds(10),
                              .timeout = timeout,
                              .same_machine = same_machine},
               [](internal::v1::HeartbeatRequest* request) { request->set_state("ready"); },
               [this](const absl::Status& why) {
                 lost_because_ = why;
                 lost_ = true;
               })
        .value();
  }
  FakeCoordinator coordinator_;
  absl::Status lost_because_;
  std::atomic<bool> lost_{false};
};

TEST(Agent, WaitsForACoordinatorThatIsStillLoading) {
  FakeCoordinator coordinator;
  coordinator.loading = 2;
  ASSERT_OK_AND_ASSIGN(const internal::v1::RegisterResponse response,
                       Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Milliseconds(1), nullptr));
  EXPECT_EQ(response.worker_id(), 3u);
}

TEST(Agent, TakesARefusalForAnAnswer) {
  FakeCoordinator coordinator;
  coordinator.full = true;
  EXPECT_THAT(Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Seconds(60), nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("complete")));
}

TEST(Agent, GivesUpACoordinatorThatCannotBeReached) {
  FakeCoordinator coordinator;
  coordinator.Stop();
  EXPECT_THAT(Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Milliseconds(300), nullptr),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(Agent::Register(coordinator.stub(), internal::v1::RegisterRequest(), absl::Seconds(60), [] { return true; }),
              StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(HeartbeatTest, GoesOnWhileTheCoordinatorAnswers) {
  const auto agent = Beat(absl::Seconds(10), true);
  EXPECT_TRUE(Eventually([&] { return coordinator_.heartbeats >= 5; }));
  EXPECT_EQ(coordinator_.wrong, 0);
  EXPECT_FALSE(lost_);
}

TEST_F(HeartbeatTest, EndsWhenTheWorkerIsNotWantedAnyMore) {
  coordinator_.refuse = true;
  const auto agent = Beat(absl::Hours(1), false);
  EXPECT_TRUE(Eventually([&] { return lost_.load(); }));
  EXPECT_THAT(lost_because_, StatusIs(absl::StatusCode::kAborted, HasSubstr("the coordinator is lost")));
}

TEST_F(HeartbeatTest, EndsWhenTheCoordinatorIsGoneForTooLong) {
  const auto agent = Beat(absl::Milliseconds(300), false);
  EXPECT_TRUE(Eventually([&] { return coordinator_.heartbeats >= 1; }));
  coordinator_.Stop();
  EXPECT_TRUE(Eventually([&] { return lost_.load(); }));
}

TEST_F(HeartbeatTest, EndsSoonWhenACoordinatorOfThisHostIsGone) {
  const auto agent = Beat(absl::Hours(1), true);
  EXPECT_TRUE(Eventually([&] { return coordinator_.heartbeats >= 1; }));
  coordinator_.Stop();
  EXPECT_TRUE(Eventually([&] { return lost_.load(); })) << "within two seconds and a little";
}

}  // namespace
}  // namespace ferry
