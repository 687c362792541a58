// A worker's end of data connections, spoken by hand, against the server with a real store, exchange and engine.

#include "coordinator/experts/expert_data_server.h"

#include <cstring>

#include "absl/time/clock.h"
#include "tests/coordinator/experts/demo_experts.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/soon.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr int kMostConnections = 3;

// The worker's end.
class Peer {
 public:
  Peer(const ListenAddress& address, const FirstWords& words) {
    connection_ = DataConnection::Connect(address, {}, Soon()).value();
    greeted_ = [&]() -> absl::Status {
      RETURN_IF_ERROR(connection_->Send(Encode(words), Soon()));
      std::array<std::byte, kFirstWordsBytes> said;
      RETURN_IF_ERROR(connection_->Receive(said, Soon()));
      return CheckFirstWords(said, words);
    }();
  }
  const absl::Status& greeted() const { return greeted_; }

  // The answer's body of `bytes`, or the server's error.
  absl::StatusOr<std::vector<std::byte>> Ask(WireKind kind, const ExpertRequest& request, size_t bytes,
                                             const std::vector<float>& rows = {}) {
    const RequestHeader header = {.kind = kind,
                                  .number = ++number_,
                                  .step = request.step,
                                  .layer = request.layer,
                                  .num_rows = request.num_rows,
                                  .num_uses = static_cast<int32_t>(request.uses.size()),
                                  .num_entries = static_cast<int32_t>(request.entry_rows.size())};
    RETURN_IF_ERROR(connection_->Send(Encode(header), Soon()));
    const std::vector<uint32_t> ids = EncodeIds(request);
    RETURN_IF_ERROR(connection_->Send(std::as_bytes(std::span(ids)), Soon()));
    if (!rows.empty()) RETURN_IF_ERROR(connection_->Send(std::as_bytes(std::span(rows)), Soon()));
    std::array<std::byte, kHeaderBytes> encoded;
    RETURN_IF_ERROR(connection_->Receive(encoded, Soon()));
    ASSIGN_OR_RETURN(const AnswerHeader answer, ParseAnswerHeader(encoded, header));
    std::vector<std::byte> body(answer.code == absl::StatusCode::kOk ? bytes : static_cast<size_t>(answer.text_bytes));
    RETURN_IF_ERROR(connection_->Receive(body, Soon()));
    if (answer.code == absl::StatusCode::kOk) return body;
    return absl::Status(answer.code, std::string(reinterpret_cast<const char*>(body.data()), body.size()));
  }
  // Exchanges rows with so many values in all.
  absl::Status Probe(int32_t rows, size_t values) {
    const RequestHeader header = {.kind = WireKind::kProbe, .number = ++number_, .num_rows = rows, .num_entries = rows};
    std::vector<float> some(values);
    RETURN_IF_ERROR(connection_->Send(Encode(header), Soon()));
    RETURN_IF_ERROR(connection_->Send(std::as_bytes(std::span(some)), Soon()));
    std::array<std::byte, kHeaderBytes> encoded;
    RETURN_IF_ERROR(connection_->Receive(encoded, Soon()));
    ASSIGN_OR_RETURN(const AnswerHeader answer, ParseAnswerHeader(encoded, header));
    return answer.code == absl::StatusCode::kOk ? connection_->Receive(std::as_writable_bytes(std::span(some)), Soon())
                                                : Internal("an error instead of rows");
  }
  absl::Status SendRaw(std::span<const std::byte> bytes) { return connection_->Send(bytes, Soon()); }
  // Unavailable once the server has closed the connection.
  absl::Status AwaitEnd() {
    std::array<std::byte, 1> one;
    return connection_->Receive(one, Soon());
  }

 private:
  uint64_t number_ = 0;
  std::unique_ptr<DataConnection> connection_;
  absl::Status greeted_;
};

class ExpertDataServerTest : public DemoExperts {
 protected:
  void SetUp() override {
    DemoExperts::SetUp();
    exchange_->AddPeer({.worker = WorkerId(0), .incarnation = Incarnation(kIncarnation), .first_layer = 0, .end_layer = 3});
    words_ = {.incarnation = kIncarnation,
              .worker = 0,
              .fingerprint = 9,
              .num_layers = config_.num_layers,
              .shape = {.n_embd = config_.n_embd, .max_rows = 4, .max_entries = 8, .max_experts = config_.router.num_experts}};
    std::vector<std::unique_ptr<DataListener>> listeners;
    ASSERT_OK_AND_ASSIGN(listeners.emplace_back(), DataListener::Listen(address_, {}));
    ASSERT_OK_AND_ASSIGN(server_,
                         ExpertDataServer::Start(std::move(listeners), {.words = words_, .max_connections = kMostConnections},
                                                 store_.get(), exchange_.get()));
  }

  Peer Connect() const { return Peer(address_, words_); }
  ExpertRequest OneExpert(int32_t expert) const {
    return {.step = 1, .layer = 2, .num_rows = 1, .uses = {{.expert = expert, .tokens = 1}}, .entry_rows = {}};
  }
  absl::Status FetchesARecord(Peer& peer, int32_t expert) const {
    ASSIGN_OR_RETURN(const std::span<const std::byte> want, store_->Record(2, expert));
    ASSIGN_OR_RETURN(const std::vector<std::byte> got, peer.Ask(WireKind::kRecord, OneExpert(expert), want.size()));
    return std::equal(got.begin(), got.end(), want.begin()) ? absl::OkStatus() : DataLoss("other bytes");
  }

  const SocketFolder folder_;
  const ListenAddress address_ = {.loopback = true, .unix_path = folder_.path() + "/experts"};
  FirstWords words_;
  std::unique_ptr<ExpertDataServer> server_;
};

TEST_F(ExpertDataServerTest, SendsRecordsAsTheStoreHasThem) {
  Peer peer = Connect();
  ASSERT_OK(peer.greeted());
  for (int32_t expert = 0; expert < 4; ++expert) EXPECT_OK(FetchesARecord(peer, expert));
}

TEST_F(ExpertDataServerTest, ComputesWhatTheExchangeComputes) {
  const ExpertRequest request = TwoRows();
  const std::vector<float> rows = Rows(2);
  std::vector<float> want(3 * config_.n_embd);
  std::vector<float> same_rows = rows;
  ASSERT_OK(exchange_->Compute(WorkerId(0), request, same_rows, std::span(want)));
  Peer peer = Connect();
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> got,
                       peer.Ask(WireKind::kCompute, request, want.size() * sizeof(float), rows));
  EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0);
}

TEST_F(ExpertDataServerTest, AProbesRowsComeBackAndNothingIsComputed) {
  Peer peer = Connect();
  EXPECT_OK(peer.Probe(3, 3 * config_.n_embd));
  EXPECT_OK(FetchesARecord(peer, 1)) << "it is no step, and the connection goes on";
}

TEST_F(ExpertDataServerTest, PlansAsTheExchangeDoes) {
  ExpertRequest request = OneExpert(3);
  request.uses = {{.expert = 3, .tokens = 1, .resident = 1}, {.expert = 5, .tokens = 1}};
  request.num_rows = 1000;
  Peer peer = Connect();
  ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> places, peer.Ask(WireKind::kPlan, request, 2));
  EXPECT_EQ(static_cast<ExpertPlace>(places[0]), ExpertPlace::kResident);
  EXPECT_EQ(static_cast<ExpertPlace>(places[1]), ExpertPlace::kHost) << "the worker has no slots";
}

TEST_F(ExpertDataServerTest, RefusesByNameAndGoesOn) {
  Peer peer = Connect();
  ExpertRequest request = OneExpert(config_.router.num_experts);
  EXPECT_THAT(peer.Ask(WireKind::kRecord, request, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  request = OneExpert(1);
  request.layer = 3;  // of another worker
  EXPECT_THAT(peer.Ask(WireKind::kRecord, request, 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer is 3")));
  request.layer = 2;
  request.uses.clear();
  EXPECT_THAT(peer.Ask(WireKind::kRecord, request, 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no expert")));
  EXPECT_OK(FetchesARecord(peer, 1));
}

TEST_F(ExpertDataServerTest, AnotherIncarnationGetsNothing) {
  words_.incarnation = 5;
  Peer peer = Connect();
  EXPECT_OK(peer.greeted());
  EXPECT_THAT(FetchesARecord(peer, 1), StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation 5")));
}

TEST_F(ExpertDataServerTest, AnotherModelIsNamedToTheWorker) {
  words_.fingerprint = 8;
  Peer peer = Connect();
  EXPECT_THAT(peer.greeted(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another model")));
  EXPECT_THAT(peer.AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(ExpertDataServerTest, BytesThatAreNoRequestEndTheirConnectionAlone) {
  Peer good = Connect(), bad = Connect();
  ASSERT_OK(bad.SendRaw(std::vector<std::byte>(kHeaderBytes, std::byte{7})));
  EXPECT_THAT(bad.AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_OK(FetchesARecord(good, 2));
}

TEST_F(ExpertDataServerTest, TakesSoManyConnectionsAndOthersOnceSomeHaveEnded) {
  {
    std::vector<std::unique_ptr<Peer>> peers;
    for (int i = 0; i < kMostConnections; ++i) {
      peers.push_back(std::make_unique<Peer>(address_, words_));
      ASSERT_OK(FetchesARecord(*peers.back(), 1));
    }
    Peer another = Connect();
    EXPECT_THAT(another.AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable));
  }
  const Deadline deadline = Soon();
  absl::Status served = Unavailable("");
  while (!served.ok() && !deadline.Passed()) {
    Peer again = Connect();
    served = FetchesARecord(again, 1);
  }
  EXPECT_OK(served);
}

}  // namespace
}  // namespace ferry
