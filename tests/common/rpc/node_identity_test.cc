#include "common/rpc/node_identity.h"

#include <grpcpp/grpcpp.h>

#include <mutex>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/grpc_status.h"
#include "common/rpc/acceptor.h"
#include "common/rpc/certificate_keeper.h"
#include "common/small_file.h"
#include "ferry/internal/v1/cluster.grpc.pb.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

// Remembers who called.
class Asked final : public internal::v1::Cluster::Service {
 public:
  grpc::Status Heartbeat(grpc::ServerContext* context, const internal::v1::HeartbeatRequest*,
                         internal::v1::HeartbeatResponse*) override {
    const std::lock_guard lock(mutex_);
    caller_ = CallerOf(*context);
    return grpc::Status::OK;
  }
  NodeCaller caller() {
    const std::lock_guard lock(mutex_);
    return caller_;
  }

 private:
  std::mutex mutex_;
  NodeCaller caller_ = NodeCaller::kStranger;
};

class NodeIdentityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(MakeClusterCa(coordinator_folder_));
    ASSERT_OK(MakeWorker(worker_folder_));
    ASSERT_OK(MakeClusterCa(other_folder_));
    ASSERT_OK_AND_ASSIGN(coordinator_, NodeIdentity::Open(coordinator_folder_));
    ASSERT_OK_AND_ASSIGN(worker_, NodeIdentity::Open(worker_folder_));
    ASSERT_OK_AND_ASSIGN(other_, NodeIdentity::Open(other_folder_));
  }
  void TearDown() override {
    if (acceptor_ != nullptr) acceptor_->Stop();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  absl::Status MakeWorker(const std::string& folder) {
    ASSIGN_OR_RETURN(const NodeRequest request, MakeNodeRequest());
    ASSIGN_OR_RETURN(const std::string pem, IssueNodeCertificate(coordinator_folder_, request.request_pem, NodeRole::kWorker));
    ASSIGN_OR_RETURN(const std::string ca, ReadSmallFile(CaCertificatePath(coordinator_folder_)));
    return WriteNodeFiles(folder, ca, pem, request.key_pem);
  }
  void Serve(const NodeIdentity& as, bool admits_strangers) {
    ASSERT_OK_AND_ASSIGN(acceptor_, Acceptor::Listen(*ParseListenAddress("127.0.0.1:0", 0), {}));
    grpc::ServerBuilder builder;
    acceptor_->AddTo(builder, as.ForServer(admits_strangers));
    builder.RegisterService(&asked_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    ASSERT_OK(acceptor_->Start());
  }
  absl::Status CallOn(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    internal::v1::HeartbeatResponse response;
    return FromGrpcStatus(internal::v1::Cluster::NewStub(channel)->Heartbeat(&context, {}, &response));
  }
  absl::Status Call(NodeRole role, const NodeIdentity* identity) {
    return CallOn(ConnectNode(acceptor_->address().ToString(), role, identity, {}));
  }

  const SocketFolder folder_;
  const std::string coordinator_folder_ = folder_.path() + "/coordinator", worker_folder_ = folder_.path() + "/worker",
                    other_folder_ = folder_.path() + "/other";
  std::unique_ptr<NodeIdentity> coordinator_, worker_, other_;
  Asked asked_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(NodeIdentityTest, BothEndsKnowEachOthersRole) {
  Serve(*coordinator_, /*admits_strangers=*/false);
  ASSERT_OK(Call(NodeRole::kCoordinator, worker_.get()));
  EXPECT_EQ(asked_.caller(), NodeCaller::kWorker);
  ASSERT_OK(Call(NodeRole::kCoordinator, coordinator_.get()));
  EXPECT_EQ(asked_.caller(), NodeCaller::kCoordinator);
  EXPECT_FALSE(Call(NodeRole::kWorker, worker_.get()).ok()) << "it says that it is no worker";
}

TEST_F(NodeIdentityTest, AnotherClusterIsRefusedByBothEnds) {
  Serve(*coordinator_, /*admits_strangers=*/true);
  EXPECT_FALSE(Call(NodeRole::kCoordinator, other_.get()).ok());
}

TEST_F(NodeIdentityTest, WithoutACertificateNobodyComesIn) {
  Serve(*worker_, /*admits_strangers=*/false);
  const std::string ca = ReadSmallFile(CaCertificatePath(coordinator_folder_)).value();
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(NodeName(NodeRole::kWorker));
  const std::string address = acceptor_->address().ToString();
  EXPECT_FALSE(CallOn(grpc::CreateCustomChannel(address, grpc::SslCredentials({.pem_root_certs = ca}), arguments)).ok());
  EXPECT_FALSE(CallOn(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())).ok());
  EXPECT_FALSE(Call(NodeRole::kWorker, nullptr).ok());
}

TEST_F(NodeIdentityTest, AStrangerIsKnownAsOne) {
  Serve(*coordinator_, /*admits_strangers=*/true);
  const std::string ca = ReadSmallFile(CaCertificatePath(coordinator_folder_)).value();
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(NodeName(NodeRole::kCoordinator));
  ASSERT_OK(CallOn(
      grpc::CreateCustomChannel(acceptor_->address().ToString(), grpc::SslCredentials({.pem_root_certs = ca}), arguments)));
  EXPECT_EQ(asked_.caller(), NodeCaller::kStranger);
}

// Both ends have certificates of four seconds, and a third host has one that nobody renews.
TEST_F(NodeIdentityTest, CertificatesAreRenewedBeforeTheyEnd) {
  const std::string forgetful_folder = folder_.path() + "/forgetful";
  const auto issue = [this](NodeRole role, absl::Duration lifetime) {
    return [this, role, lifetime](const std::string& request) {
      return IssueNodeCertificate(coordinator_folder_, request, role, lifetime);
    };
  };
  const auto make = [&](const std::string& folder, NodeRole role) -> absl::Status {
    ASSIGN_OR_RETURN(const NodeRequest request, MakeNodeRequest());
    ASSIGN_OR_RETURN(const std::string pem, issue(role, absl::Seconds(8))(request.request_pem));
    ASSIGN_OR_RETURN(const std::string ca, ReadSmallFile(CaCertificatePath(coordinator_folder_)));
    return WriteNodeFiles(folder, ca, pem, request.key_pem);
  };
  ASSERT_OK(make(coordinator_folder_, NodeRole::kCoordinator));
  ASSERT_OK(make(worker_folder_, NodeRole::kWorker));
  ASSERT_OK(make(forgetful_folder, NodeRole::kWorker));
  ASSERT_OK_AND_ASSIGN(const absl::Time end, CertificateEnd(ReadSmallFile(NodeCertificatePath(forgetful_folder)).value()));
  ASSERT_OK_AND_ASSIGN(coordinator_, NodeIdentity::Open(coordinator_folder_, /*refresh_seconds=*/1));
  ASSERT_OK_AND_ASSIGN(worker_, NodeIdentity::Open(worker_folder_, /*refresh_seconds=*/1));
  ASSERT_OK_AND_ASSIGN(const auto forgetful, NodeIdentity::Open(forgetful_folder, /*refresh_seconds=*/1));
  const CertificateKeeper::Options often = {.pause = absl::Milliseconds(100), .renew_before = absl::Seconds(7)};
  const auto keep = [&](const std::string& folder, NodeRole role) {
    return CertificateKeeper::Start(folder, issue(role, kNodeLifetime), often).value();
  };
  const auto coordinator_keeper = keep(coordinator_folder_, NodeRole::kCoordinator);
  const auto worker_keeper = keep(worker_folder_, NodeRole::kWorker);
  Serve(*coordinator_, /*admits_strangers=*/false);
  EXPECT_OK(Call(NodeRole::kCoordinator, forgetful.get()));
  while (absl::Now() < end + absl::Seconds(1)) {
    EXPECT_OK(Call(NodeRole::kCoordinator, worker_.get())) << absl::Now() << ", the first certificates end " << end;
    absl::SleepFor(absl::Milliseconds(200));
  }
  EXPECT_FALSE(Call(NodeRole::kCoordinator, forgetful.get()).ok());
}

// gRPC 1.51 may tell a provider of certificates that its last watcher has gone after a new one has come: who shares a provider
// then has no certificates for good.
TEST_F(NodeIdentityTest, AChannelThatOpensWhileAnotherClosesHasCertificates) {
  constexpr int kThreads = 4, kChannels = 40;
  Serve(*coordinator_, /*admits_strangers=*/false);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([this] {
      for (int channel = 0; channel < kChannels; ++channel) EXPECT_OK(Call(NodeRole::kCoordinator, worker_.get()));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(NodeIdentityTest, SaysWhatAFolderLacks) {
  EXPECT_THAT(NodeIdentity::Open(folder_.path() + "/nothing"),
              StatusIs(absl::StatusCode::kFailedPrecondition, ::testing::HasSubstr("ferry cluster-init")));
}

}  // namespace
}  // namespace ferry
