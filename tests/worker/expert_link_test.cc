// Both expert links against a coordinator's end inside the test.

#include "worker/expert_link.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <atomic>
#include <thread>

#include "common/deadline.h"
#include "common/grpc_status.h"
#include "common/rpc/rpc_deadline.h"
#include "common/shm/descriptor_socket.h"
#include "common/shm/shm_arena.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/soon.h"
#include "tests/worker/tiny_model.h"
#include "worker/server_limits.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Incarnation kIncarnation(77);
std::vector<std::byte> Record(ExpertId id) {
  const auto record = Model().Record(id.layer, id.expert);
  return {record.begin(), record.end()};
}

// ------------------------------------------------------------------------------------------------------------------- gRPC

// Serves records of the model; `spoil` may change each chunk. Computes 2 * the input row.
class FakeCluster final : public internal::v1::Cluster::Service {
 public:
  FakeCluster() {
    grpc::ServerBuilder builder;
    SetServerLimits(builder);
    builder.AddListeningPort(folder_.address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    stub_ = internal::v1::Cluster::NewStub(
        ConnectPeer(folder_.address(), NodeRole::kCoordinator, nullptr, {.quick_reconnects = true}));
  }
  ~FakeCluster() override { server_->Shutdown(RpcDeadline(absl::ZeroDuration())); }
  internal::v1::Cluster::StubInterface* stub() { return stub_.get(); }

  std::function<void(internal::v1::ExpertRecordChunk&)> spoil;
  std::atomic<uint64_t> newest_step{0};  // of a plan: fetches of earlier ones are refused
  std::atomic<bool> silent{false};       // answers wait
  std::atomic<int> fetches{0};

  grpc::Status PlanExperts(grpc::ServerContext*, const internal::v1::ExpertRequest* request,
                           internal::v1::ExpertPlan* plan) override {
    if (request->incarnation() != kIncarnation.value()) return ToGrpcStatus(Aborted("incarnation"));
    newest_step = request->step();
    for (const internal::v1::ActivatedExpert& use : request->uses()) {
      plan->add_places(use.resident()     ? internal::v1::ExpertPlan::RESIDENT
                       : use.tokens() > 2 ? internal::v1::ExpertPlan::SHIP
                                          : internal::v1::ExpertPlan::HOST);
    }
    return grpc::Status::OK;
  }
  grpc::Status FetchExperts(grpc::ServerContext* context, const internal::v1::ExpertRequest* request,
                            grpc::ServerWriter<internal::v1::ExpertRecordChunk>* writer) override {
    ++fetches;
    while (silent && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    if (request->step() < newest_step) return ToGrpcStatus(Aborted("step %d is over", request->step()));
    for (const internal::v1::ActivatedExpert& use : request->uses()) {
      const auto record = Model().Record(request->layer(), use.expert());
      constexpr size_t kPart = 5000;
      for (size_t offset = 0; offset < record.size(); offset += kPart) {
        const auto part = record.subspan(offset, std::min(kPart, record.size() - offset));
        internal::v1::ExpertRecordChunk chunk;
        chunk.set_step(request->step());
        chunk.set_layer(request->layer());
        chunk.set_expert(use.expert());
        chunk.set_record_bytes(record.size());
        chunk.set_offset(offset);
        chunk.set_data(part.data(), part.size());
        if (offset + part.size() == record.size()) chunk.set_xxh3(XXH3_64bits(record.data(), record.size()));
        if (spoil) spoil(chunk);
        writer->Write(chunk);
      }
    }
    return grpc::Status::OK;
  }
  grpc::Status ComputeExperts(grpc::ServerContext* context, const internal::v1::ComputeExpertsRequest* request,
                              internal::v1::ComputeExpertsResponse* response) override {
    while (silent && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    const float* const rows = reinterpret_cast<const float*>(request->rows().data());
    const int64_t n_embd = Model().config.n_embd;
    if (request->probe()) response->set_contributions(request->rows());
    if (request->probe()) return grpc::Status::OK;
    std::vector<float> out;
    for (const uint32_t row : request->entry_rows()) {
      for (int64_t i = 0; i < n_embd; ++i) out.push_back(2 * rows[row * n_embd + i]);
    }
    if (short_answer) out.pop_back();
    response->set_contributions(out.data(), out.size() * sizeof(float));
    return grpc::Status::OK;
  }
  std::atomic<bool> short_answer{false};

 private:
  const SocketFolder folder_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Cluster::Stub> stub_;
};

class GrpcLinkTest : public testing::Test {
 protected:
  GrpcLinkTest() {
    link_ = ConnectGrpcLink({.worker_id = 1,
                             .incarnation = kIncarnation,
                             .arena = Model().layout,
                             .n_embd = Model().config.n_embd,
                             .max_rows = 64,
                             .max_entries = 128},
                            cluster_.stub(), ops_.get())
                .value();
  }

  std::unique_ptr<Ops> ops_ = MakeOps();
  FakeCluster cluster_;
  std::unique_ptr<ExpertLink> link_;
};

TEST_F(GrpcLinkTest, MeasuresWhatAnExchangeCosts) {
  ASSERT_OK_AND_ASSIGN(const ExchangeCost cost, link_->MeasureExchange(Soon()));
  EXPECT_GT(cost.exchange_seconds + 2 * cost.row_seconds, 0);
  cluster_.silent = true;
  EXPECT_THAT(link_->MeasureExchange(Deadline::In(absl::Milliseconds(50))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  cluster_.silent = false;
}

TEST_F(GrpcLinkTest, BringsRecordsMoreThanItsBuffersHold) {
  std::vector<ExpertId> ids;
  for (int32_t expert = 0; expert < 8; ++expert) ids.push_back({2, expert});
  for (const ExpertId id : ids) ASSERT_OK(link_->AskRecord(1, id));
  for (const ExpertId id : ids) {
    ASSERT_OK_AND_ASSIGN(const auto record, link_->WaitRecord(id, Soon()));
    EXPECT_EQ(std::vector<std::byte>(record.begin(), record.end()), Record(id)) << "expert " << id.expert;
    link_->ReleaseRecord(id);
  }
}

TEST_F(GrpcLinkTest, RefusesADamagedRecord) {
  cluster_.spoil = [](internal::v1::ExpertRecordChunk& chunk) { (*chunk.mutable_data())[0] ^= 1; };
  ASSERT_OK(link_->AskRecord(1, {0, 3}));
  EXPECT_THAT(link_->WaitRecord({0, 3}, Soon()), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("came damaged")));
  link_->ReleaseRecord({0, 3});
  cluster_.spoil = nullptr;
  ASSERT_OK(link_->AskRecord(1, {0, 3}));
  EXPECT_OK(link_->WaitRecord({0, 3}, Soon())) << "it may be asked for again";
}

TEST_F(GrpcLinkTest, RefusesARecordThatEndsEarly) {
  cluster_.spoil = [](internal::v1::ExpertRecordChunk& chunk) {
    if (chunk.offset() > 0) chunk.clear_data();
  };
  ASSERT_OK(link_->AskRecord(1, {0, 0}));
  EXPECT_THAT(link_->WaitRecord({0, 0}, Soon()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data has 0 bytes")));
}

TEST_F(GrpcLinkTest, RefusesAnotherExpertThanItAskedFor) {
  cluster_.spoil = [](internal::v1::ExpertRecordChunk& chunk) { chunk.set_expert(chunk.expert() + 1); };
  ASSERT_OK(link_->AskRecord(1, {0, 0}));
  EXPECT_THAT(link_->WaitRecord({0, 0}, Soon()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expert is 1, want 0")));
}

TEST_F(GrpcLinkTest, RefusesToAskForWhatIsNotInTheModel) {
  EXPECT_THAT(link_->AskRecord(1, {0, 8}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(link_->AskRecord(1, {4, 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(link_->AskRecord(1, {-1, 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(link_->WaitRecord({0, 0}, Soon()), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(GrpcLinkTest, AsksAgainInTheNewStepWhenTheOldOneHasBeenOvertaken) {
  cluster_.silent = true;
  ASSERT_OK(link_->AskRecord(1, {0, 1}));
  while (cluster_.fetches == 0) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_OK(link_->Plan(2, 0, 1, {}, 0, Soon()));  // a later step
  cluster_.silent = false;
  EXPECT_OK(link_->WaitRecord({0, 1}, Soon()));
  EXPECT_EQ(cluster_.fetches, 2);
}

TEST_F(GrpcLinkTest, GivesUpARecordThatDoesNotCome) {
  cluster_.silent = true;
  ASSERT_OK(link_->AskRecord(1, {0, 1}));
  EXPECT_FALSE(link_->RecordHere({0, 1}));
  EXPECT_THAT(link_->WaitRecord({0, 1}, Deadline::In(absl::Milliseconds(30))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  link_->ReleaseRecord({0, 1});
  cluster_.silent = false;
  for (int32_t expert = 0; expert < 8; ++expert) ASSERT_OK(link_->AskRecord(1, {1, expert}));
  for (int32_t expert = 0; expert < 8; ++expert) {
    EXPECT_OK(link_->WaitRecord({1, expert}, Soon())) << "no buffer was lost";
    link_->ReleaseRecord({1, expert});
  }
}

TEST_F(GrpcLinkTest, AsksThePlanner) {
  const std::vector<ActivatedExpert> uses = {
      {.expert = 0, .tokens = 1}, {.expert = 2, .tokens = 1, .resident = 1}, {.expert = 5, .tokens = 9}};
  ASSERT_OK_AND_ASSIGN(const auto places, link_->Plan(1, 0, 11, uses, 0, Soon()));
  EXPECT_THAT(places, ElementsAre(ExpertPlace::kHost, ExpertPlace::kResident, ExpertPlace::kShip));
}

HostRequest TwoRows(const std::vector<ActivatedExpert>& uses, const std::vector<int32_t>& entry_rows) {
  return {.step = 1, .layer = 0, .num_rows = 2, .uses = uses, .entry_rows = entry_rows};
}
const std::vector<ActivatedExpert> kUses = {{.expert = 1, .tokens = 1}, {.expert = 6, .tokens = 2}};
const std::vector<int32_t> kEntryRows = {1, 0, 1};

TEST_F(GrpcLinkTest, HasTheHostCompute) {
  const std::span<float> rows = link_->HostRows(2);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  ASSERT_OK(link_->StartCompute(TwoRows(kUses, kEntryRows)));
  ASSERT_OK_AND_ASSIGN(const auto contributions, link_->FinishCompute(Soon()));
  ASSERT_EQ(contributions.size(), 3u * 64);
  EXPECT_EQ(contributions[0], 128) << "row 1";
  EXPECT_EQ(contributions[64 + 3], 6) << "row 0";
}

TEST_F(GrpcLinkTest, RefusesContributionsOfAnotherSize) {
  cluster_.short_answer = true;
  link_->HostRows(2);
  ASSERT_OK(link_->StartCompute(TwoRows(kUses, kEntryRows)));
  EXPECT_THAT(link_->FinishCompute(Soon()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("contributions has 764 bytes, want 768")));
}

TEST_F(GrpcLinkTest, EndsAComputationAtItsDeadlineAndStartsTheNext) {
  cluster_.silent = true;
  link_->HostRows(2);
  ASSERT_OK(link_->StartCompute(TwoRows(kUses, kEntryRows)));
  EXPECT_THAT(link_->StartCompute(TwoRows(kUses, kEntryRows)), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(link_->FinishCompute(Deadline::In(absl::Milliseconds(30))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  cluster_.silent = false;
  link_->HostRows(2);
  ASSERT_OK(link_->StartCompute(TwoRows(kUses, kEntryRows)));
  EXPECT_OK(link_->FinishCompute(Soon()));
}

// ---------------------------------------------------------------------------------------------------------- shared memory

class ShmLinkTest : public testing::Test {
 protected:
  ShmLinkTest() {
    arena_ = ShmArena::Create("test arena", Model().layout.bytes()).value();
    std::copy_n(Model().arena.data(), Model().layout.bytes(), arena_.writable().data());
    EXPECT_OK(arena_.Seal());
    for (auto& mailbox : mailboxes_) mailbox = ExpertMailbox::Create(kShape).value();
    server_ = DescriptorServer::Listen(absl::StrFormat("ferry-test-%d", getpid())).value();
    server_->Offer("key", {arena_.fd(), mailboxes_[0]->fd(), mailboxes_[1]->fd()});
  }

  absl::StatusOr<std::unique_ptr<ExpertLink>> Connect(MailboxShape shape = kShape) {
    return ConnectShmLink({.descriptor_socket = server_->name(),
                           .descriptor_key = "key",
                           .mailbox = shape,
                           .incarnation = kIncarnation,
                           .arena = Model().layout},
                          ops_.get(), /*pin=*/true, Soon());
  }

  // Takes a computation from a mailbox and answers each entry with its row's first number and `more`.
  void Compute(ExpertMailbox& mailbox, float more) {
    const absl::StatusOr<ExpertRequest> compute = mailbox.WaitForRequest(Soon(), 4);
    ASSERT_OK(compute);
    for (size_t i = 0; i < compute->entry_rows.size(); ++i) {
      mailbox.contributions()[i * 64] = mailbox.rows()[compute->entry_rows[i] * 64] + more;
    }
    mailbox.Answer(absl::OkStatus(), {});
  }

  static constexpr MailboxShape kShape = {.n_embd = 64, .max_rows = 4, .max_entries = 8, .max_experts = 8};
  std::unique_ptr<Ops> ops_ = MakeOps();
  ShmArena arena_;
  std::array<std::unique_ptr<ExpertMailbox>, kMailboxesOfAWorker> mailboxes_;
  std::unique_ptr<DescriptorServer> server_;
};

TEST_F(ShmLinkTest, ReadsRecordsWhereTheyLie) {
  ASSERT_OK_AND_ASSIGN(const auto link, Connect());
  ASSERT_OK(link->AskRecord(1, {3, 5}));
  EXPECT_TRUE(link->RecordHere({3, 5}));
  ASSERT_OK_AND_ASSIGN(const auto record, link->WaitRecord({3, 5}, Soon()));
  EXPECT_EQ(std::vector<std::byte>(record.begin(), record.end()), Record({3, 5}));
  link->ReleaseRecord({3, 5});
  EXPECT_THAT(link->WaitRecord({3, 5}, Soon()), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(link->AskRecord(1, {3, 8}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ShmLinkTest, ExchangesPlansAndComputations) {
  ASSERT_OK_AND_ASSIGN(const auto link, Connect());
  std::thread engine([&] {
    const absl::StatusOr<ExpertRequest> plan = mailboxes_[0]->WaitForRequest(Soon(), 4);
    ASSERT_OK(plan);
    EXPECT_EQ(plan->incarnation, kIncarnation.value());
    mailboxes_[0]->Answer(absl::OkStatus(), std::vector<ExpertPlace>{ExpertPlace::kShip, ExpertPlace::kHost});
    Compute(*mailboxes_[0], 1);
  });
  ASSERT_OK_AND_ASSIGN(const auto places,
                       link->Plan(1, 2, 1000, std::vector<ActivatedExpert>{{0, 500, 0}, {7, 3, 0}}, 0, Soon()));
  EXPECT_THAT(places, ElementsAre(ExpertPlace::kShip, ExpertPlace::kHost));
  const std::span<float> rows = link->HostRows(2);
  rows[0] = 10, rows[64] = 20;
  ASSERT_OK(link->StartCompute(TwoRows(kUses, kEntryRows)));
  ASSERT_OK_AND_ASSIGN(const auto contributions, link->FinishCompute(Soon()));
  ASSERT_EQ(contributions.size(), 3u * 64);
  EXPECT_EQ(contributions[0], 21);
  EXPECT_EQ(contributions[64], 11);
  engine.join();
}

// The second computation ends first here. The link gives the answers in the order of the starts.
TEST_F(ShmLinkTest, StartsAComputationWhileAnotherRuns) {
  ASSERT_OK_AND_ASSIGN(const auto link, Connect());
  ASSERT_EQ(link->max_running(), 2);
  link->HostRows(2)[0] = 10;
  ASSERT_OK(link->StartCompute(TwoRows(kUses, kEntryRows)));
  link->HostRows(2)[0] = 20;
  ASSERT_OK(link->StartCompute(TwoRows(kUses, kEntryRows)));
  EXPECT_THAT(link->StartCompute(TwoRows(kUses, kEntryRows)), StatusIs(absl::StatusCode::kFailedPrecondition));
  Compute(*mailboxes_[1], 2);
  EXPECT_FALSE(link->Answered()) << "the first one runs";
  Compute(*mailboxes_[0], 1);
  EXPECT_TRUE(link->Answered());
  ASSERT_OK_AND_ASSIGN(const auto first, link->FinishCompute(Soon()));
  EXPECT_EQ(first[64], 11);
  ASSERT_OK_AND_ASSIGN(const auto second, link->FinishCompute(Soon()));
  EXPECT_EQ(second[64], 22);
  EXPECT_FALSE(link->Answered());
  EXPECT_THAT(link->FinishCompute(Soon()), StatusIs(absl::StatusCode::kFailedPrecondition));
  // Alone, a computation takes the first mailbox again.
  ASSERT_OK(link->StartCompute(TwoRows(kUses, kEntryRows)));
  Compute(*mailboxes_[0], 0);
  EXPECT_OK(link->FinishCompute(Soon()).status());
}

TEST_F(ShmLinkTest, TakesTheNextComputationAfterALateAnswerAlone) {
  ASSERT_OK_AND_ASSIGN(const auto link, Connect());
  for (const float number : {10.0f, 20.0f}) {
    link->HostRows(2)[0] = number;
    ASSERT_OK(link->StartCompute(TwoRows(kUses, kEntryRows)));
  }
  EXPECT_THAT(link->FinishCompute(Deadline::In(absl::Milliseconds(10))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  Compute(*mailboxes_[1], 2);
  ASSERT_OK_AND_ASSIGN(const auto second, link->FinishCompute(Soon()));
  EXPECT_EQ(second[64], 22);
  EXPECT_THAT(link->StartCompute(TwoRows(kUses, kEntryRows)), StatusIs(absl::StatusCode::kFailedPrecondition));
  Compute(*mailboxes_[0], 1);
  link->HostRows(2)[0] = 30;
  ASSERT_OK(link->StartCompute(TwoRows(kUses, kEntryRows)));
  Compute(*mailboxes_[0], 3);
  ASSERT_OK_AND_ASSIGN(const auto third, link->FinishCompute(Soon()));
  EXPECT_EQ(third[64], 33);
}

TEST_F(ShmLinkTest, EndsAWaitForAnEngineThatDoesNotAnswer) {
  ASSERT_OK_AND_ASSIGN(const auto link, Connect());
  EXPECT_THAT(link->Plan(1, 0, 5, kUses, 0, Deadline::In(absl::Milliseconds(30))), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(ShmLinkTest, RefusesMemoryThatIsNotWhatItWasTold) {
  MailboxShape larger = kShape;
  larger.max_entries = 1000;
  EXPECT_FALSE(Connect(larger).ok());
}

TEST_F(ShmLinkTest, RefusesOtherDescriptorsThanArenaAndMailboxes) {
  const int mailbox = mailboxes_[0]->fd();
  server_->Offer("key", {arena_.fd(), mailbox});
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kInternal, HasSubstr("handed out 2 descriptors, want 3")));
  server_->Offer("key", {arena_.fd(), mailbox, mailbox, arena_.fd()});
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kInternal, HasSubstr("handed out 4 descriptors")));
  server_->Offer("key", {arena_.fd(), mailbox, arena_.fd()});
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("the expert mailbox")));
  server_->Offer("key", {mailbox, arena_.fd(), mailbox});
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the expert arena")));
}

TEST_F(ShmLinkTest, SaysWhenNothingIsHandedOutAndWhatDoesWithout) {
  server_->Withdraw("key");
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("--expert-transport grpc")));
}

}  // namespace
}  // namespace ferry
