// A coordinator's division of experts over hosts, with hosts in this process that serve real data connections.

#include "coordinator/experts/divided_engine.h"

#include <signal.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "expert_host/data_server.h"
#include "tests/testing/socket_folder.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(60);

bool Eventually(const std::function<bool()>& condition) {
  for (const Deadline deadline = Deadline::In(kLong); !deadline.Passed(); absl::SleepFor(absl::Milliseconds(5))) {
    if (condition()) return true;
  }
  return false;
}

class DividedEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    signal(SIGPIPE, SIG_IGN);
    ASSERT_OK_AND_ASSIGN(GgufFile file, GgufFile::Open(SourcePath("models/demo-moe.gguf")));
    ASSERT_OK_AND_ASSIGN(config_, ModelConfig::FromGguf(file));
    ASSERT_OK_AND_ASSIGN(const auto pool, ThreadPool::Create({.num_threads = 1, .pin = false}));
    ASSERT_OK_AND_ASSIGN(store_, ExpertStore::Load(file, config_, *pool, [](const LoadProgress&) {}));
    ASSERT_OK_AND_ASSIGN(ops_, CreateOps({.kind = "cpu", .num_threads = 1, .pin_threads = false}));
    ASSERT_OK_AND_ASSIGN(host_ops_, CreateOps({.kind = "cpu", .num_threads = 1, .pin_threads = false}));
    engine_ = std::make_unique<ExpertEngine>(store_.get(), ops_.get(), config_.expert.glu, config_.n_embd);
    host_engine_ = std::make_unique<ExpertEngine>(store_.get(), host_ops_.get(), config_.expert.glu, config_.n_embd);
    words_ = {.fingerprint = 77,
              .num_layers = config_.num_layers,
              .shape = {.n_embd = config_.n_embd,
                        .max_rows = 64,
                        .max_entries = 64 * config_.router.top_k,
                        .max_experts = config_.router.num_experts}};
    ASSERT_OK_AND_ASSIGN(
        hosts_,
        ExpertHosts::Create(
            {.words = words_, .kernels = KernelsOf(ops_->name()), .machine = "here", .certificates = "", .silence = kLong}));
    divided_ = std::make_unique<DividedEngine>(store_.get(), engine_.get(), hosts_.get(), DivisionMode::kEven);
  }

  FirstWords WordsOf(uint64_t incarnation) const {
    FirstWords words = words_;
    words.incarnation = incarnation;
    return words;
  }
  ListenAddress AddressOf(uint64_t incarnation) const {
    return {.loopback = true, .unix_path = sockets_.path() + "/" + std::to_string(incarnation)};
  }
  ExpertHostOffer OfferOf(uint64_t incarnation) const {
    auto all = std::make_shared<std::vector<bool>>(config_.router.num_experts, true);
    return {.incarnation = Incarnation(incarnation),
            .machine = "there",
            .address = AddressOf(incarnation).ToString(),
            .kernels = KernelsOf(ops_->name()),
            .engine = ops_->name(),
            .fingerprint = words_.fingerprint,
            .ready = true,
            .holds = HeldExperts(config_.num_layers, all),
            .rates = offered_};
  }
  // A host that serves, and that the coordinator has connected to.
  std::unique_ptr<DataServer> StartHost(uint64_t incarnation) {
    absl::StatusOr<std::unique_ptr<DataListener>> listener =
        DataListener::Listen(AddressOf(incarnation), {.peer = NodeRole::kCoordinator});
    EXPECT_OK(listener);
    absl::StatusOr<std::unique_ptr<DataServer>> server =
        DataServer::Start(*std::move(listener), WordsOf(incarnation), host_engine_.get());
    EXPECT_OK(server);
    EXPECT_OK(hosts_->Offer(OfferOf(incarnation)));
    EXPECT_TRUE(Eventually([&] { return hosts_->Offer(OfferOf(incarnation))->state == "connected"; }));
    return *std::move(server);
  }

  // `rows` rows, each through as many experts as there are ranks.
  ExpertRequest RequestOf(int32_t rows, int32_t layer = 0) const {
    ExpertRequest request = {.kind = ExpertRequestKind::kCompute, .step = 3, .layer = layer, .num_rows = rows};
    const int32_t experts = static_cast<int32_t>(config_.router.num_experts);
    for (int32_t expert = 0; expert < experts; ++expert) {
      ActivatedExpert use = {.expert = expert};
      for (int32_t row = 0; row < rows; ++row) {
        if ((expert + row) % 3 != 0) continue;
        request.entry_rows.push_back(row);
        ++use.tokens;
      }
      if (use.tokens > 0) request.uses.push_back(use);
    }
    return request;
  }
  std::vector<float> RowsOf(int32_t count) const {
    std::vector<float> rows(count * config_.n_embd);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>((i * 2654435761u >> 16) % 1000) / 500.f - 1.f;
    return rows;
  }
  // Computes a request, and again on this host alone: the same bits.
  void ExpectTheSameBits(const ExpertRequest& request) {
    std::vector<float> rows = RowsOf(request.num_rows), alone(request.entry_rows.size() * config_.n_embd), together = alone;
    ASSERT_OK(engine_->Compute(request, rows, alone));
    ASSERT_OK(divided_->Compute(request, rows, together));
    EXPECT_EQ(std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)), 0);
  }
  ExpertHost::Report ReportOf(size_t host) const { return hosts_->All().at(host)->report(); }

  const SocketFolder sockets_;
  ModelConfig config_;
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<Ops> ops_, host_ops_;
  std::unique_ptr<ExpertEngine> engine_, host_engine_;
  FirstWords words_;
  ExpertRates offered_ = {.read_bytes_per_second = 1e9, .flops_per_second = 1e9};  // by every host
  std::unique_ptr<ExpertHosts> hosts_;
  std::unique_ptr<DividedEngine> divided_;
};

TEST_F(DividedEngineTest, GivesTheSameBitsOnAnyNumberOfHosts) {
  ExpectTheSameBits(RequestOf(1));
  const std::unique_ptr<DataServer> first = StartHost(1);
  for (const int32_t rows : {1, 2, 17}) ExpectTheSameBits(RequestOf(rows));
  EXPECT_GT(ReportOf(0).entries, 0);
  const std::unique_ptr<DataServer> second = StartHost(2), third = StartHost(3);
  for (const int32_t rows : {1, 5, 17}) ExpectTheSameBits(RequestOf(rows, /*layer=*/1));
  for (size_t host = 0; host < 3; ++host) {
    EXPECT_GT(ReportOf(host).entries, 0);
    EXPECT_EQ(ReportOf(host).failures, 0);
  }
}

TEST_F(DividedEngineTest, ComputesTheShareOfAHostThatIsGone) {
  std::unique_ptr<DataServer> server = StartHost(1);
  ExpectTheSameBits(RequestOf(4));
  server = nullptr;
  ExpectTheSameBits(RequestOf(4));
  EXPECT_EQ(ReportOf(0).failures, 1);
  EXPECT_TRUE(hosts_->Connected().empty()) << "it gets nothing more";
  ExpectTheSameBits(RequestOf(4));
  EXPECT_EQ(ReportOf(0).failures, 1);
}

TEST_F(DividedEngineTest, AHostThatComesBackTakesPartAgain) {
  std::unique_ptr<DataServer> server = StartHost(1);
  server = nullptr;
  ExpectTheSameBits(RequestOf(4));
  server = StartHost(1);
  const int64_t before = ReportOf(0).entries;
  ExpectTheSameBits(RequestOf(4));
  EXPECT_GT(ReportOf(0).entries, before);
}

TEST_F(DividedEngineTest, AHostGetsOnlyWhatItHolds) {
  auto odd = std::make_shared<std::vector<bool>>(config_.router.num_experts);
  for (size_t i = 1; i < odd->size(); i += 2) (*odd)[i] = true;
  ASSERT_OK_AND_ASSIGN(auto listener, DataListener::Listen(AddressOf(1), {.peer = NodeRole::kCoordinator}));
  ASSERT_OK_AND_ASSIGN(const auto server, DataServer::Start(std::move(listener), WordsOf(1), host_engine_.get()));
  ExpertHostOffer offer = OfferOf(1);
  offer.holds = HeldExperts(config_.num_layers, odd);
  offer.holds[1] = nullptr;
  ASSERT_TRUE(Eventually([&] { return hosts_->Offer(offer)->state == "connected"; }));
  ExpectTheSameBits(RequestOf(1, /*layer=*/1));
  EXPECT_EQ(ReportOf(0).entries, 0);
  ExpectTheSameBits(RequestOf(8));
  EXPECT_GT(ReportOf(0).entries, 0);
}

// A host that greets as it should, answers probes, and then says what the test wants.
class Liar {
 public:
  using Say = std::function<void(DataConnection&, const RequestHeader&)>;
  Liar(const ListenAddress& address, const FirstWords& words, Say say) {
    absl::StatusOr<std::unique_ptr<DataListener>> listener = DataListener::Listen(address, {.peer = NodeRole::kCoordinator});
    EXPECT_OK(listener);
    thread_ = std::thread([this, words, say, listener = *std::move(listener)] {
      auto connection = listener->Accept(Deadline::In(kLong), kLong);
      if (!connection.ok()) return;
      std::vector<std::byte> bytes(kFirstWordsBytes);
      if (!(*connection)->Receive(bytes, Deadline::In(kLong)).ok()) return;
      (*connection)->Send(Encode(words), Deadline::In(kLong)).IgnoreError();
      for (uint64_t number = 1;; ++number) {
        std::vector<std::byte> header_bytes(kHeaderBytes);
        if (!(*connection)->Receive(header_bytes, Deadline::In(kLong)).ok()) return;
        const absl::StatusOr<RequestHeader> header = ParseRequestHeader(header_bytes, words.shape, number, kHostKinds);
        if (!header.ok()) return;
        std::vector<std::byte> rest((header->kind == WireKind::kProbe ? 0 : IdWords(*header)) * 4 +
                                    header->num_rows * words.shape.n_embd * 4);
        if (!(*connection)->Receive(rest, Deadline::In(kLong)).ok()) return;
        if (header->kind == WireKind::kCompute) {
          say(**connection, *header);
          while (!stop_) absl::SleepFor(absl::Milliseconds(5));
          return;
        }
        Answer(**connection, *header, header->num_entries * words.shape.n_embd, {});
      }
    });
  }
  ~Liar() {
    stop_ = true;
    thread_.join();
  }
  static void Answer(DataConnection& connection, const RequestHeader& to, int64_t floats,
                     const std::function<void(AnswerHeader&)>& change) {
    AnswerHeader answer = {.number = to.number, .step = to.step, .layer = to.layer, .num_entries = to.num_entries};
    if (change) change(answer);
    connection.Send(Encode(answer), Deadline::In(kLong)).IgnoreError();
    const std::vector<float> rows(floats);
    connection.Send(std::as_bytes(std::span(rows)), Deadline::In(kLong)).IgnoreError();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST_F(DividedEngineTest, AnAnswerThatIsNoneIsNamedAndTheShareComputedHere) {
  struct Case {
    const char* named;
    std::function<void(AnswerHeader&)> change;
  };
  const std::vector<Case> cases = {{"number is", [](AnswerHeader& answer) { ++answer.number; }},
                                   {"step is", [](AnswerHeader& answer) { --answer.step; }},
                                   {"layer is", [](AnswerHeader& answer) { ++answer.layer; }},
                                   {"num_entries is", [](AnswerHeader& answer) { ++answer.num_entries; }},
                                   {"code is", [](AnswerHeader& answer) { answer.code = static_cast<absl::StatusCode>(99); }},
                                   {"seconds is", [](AnswerHeader& answer) { answer.seconds = -1; }}};
  uint64_t incarnation = 100;
  for (const Case& wrong : cases) {
    SCOPED_TRACE(wrong.named);
    ++incarnation;
    {
      const Liar liar(AddressOf(incarnation), WordsOf(incarnation), [&](DataConnection& connection, const RequestHeader& header) {
        Liar::Answer(connection, header, header.num_entries * config_.n_embd, wrong.change);
      });
      ASSERT_TRUE(Eventually([&] { return hosts_->Offer(OfferOf(incarnation))->state == "connected"; }));
      ExpectTheSameBits(RequestOf(6));
    }
    EXPECT_THAT(ReportOf(hosts_->All().size() - 1).last_failure, HasSubstr(wrong.named));
  }
}

TEST_F(DividedEngineTest, AHostThatFallsSilentInAnExchangeIsNotWaitedForLong) {
  const Liar liar(AddressOf(1), WordsOf(1), [](DataConnection&, const RequestHeader&) {});
  ASSERT_TRUE(Eventually([&] { return hosts_->Offer(OfferOf(1))->state == "connected"; }));
  const Stopwatch waiting;
  ExpectTheSameBits(RequestOf(6));
  EXPECT_LT(waiting.Elapsed(), absl::Seconds(30)) << "far below a step's timeout";
  EXPECT_EQ(ReportOf(0).failures, 1);
}

TEST_F(DividedEngineTest, HostsThatFallSilentTogetherAreWaitedForTogether) {
  constexpr uint64_t kHosts = 8;
  std::vector<std::unique_ptr<Liar>> silent;
  for (uint64_t host = 1; host <= kHosts; ++host) {
    silent.push_back(std::make_unique<Liar>(AddressOf(host), WordsOf(host), [](DataConnection&, const RequestHeader&) {}));
    ASSERT_TRUE(Eventually([&] { return hosts_->Offer(OfferOf(host))->state == "connected"; }));
  }
  const Stopwatch waiting;
  ExpectTheSameBits(RequestOf(6));
  EXPECT_LT(waiting.Elapsed(), absl::Seconds(5)) << "a second for each would be eight";
  for (size_t host = 0; host < kHosts; ++host) EXPECT_EQ(ReportOf(host).failures, 1);
}

TEST_F(DividedEngineTest, AHostWithAnotherModelOrOtherKernelsIsRefusedByName) {
  ExpertHostOffer offer = OfferOf(1);
  offer.fingerprint = 78;
  EXPECT_THAT(hosts_->Offer(offer), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another model")));
  offer = OfferOf(1);
  offer.kernels = "neon";
  EXPECT_THAT(hosts_->Offer(offer), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--isa")));
  offer = OfferOf(1);
  offer.rates.read_bytes_per_second = -1;
  EXPECT_THAT(hosts_->Offer(offer), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("read_bytes_per_second")));
  offer = OfferOf(1);
  offer.holds.pop_back();
  EXPECT_THAT(hosts_->Offer(offer), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds")));
  EXPECT_TRUE(hosts_->All().empty());
}

TEST_F(DividedEngineTest, AHostAtWhoseAddressAnotherModelIsServedGetsNothing) {
  FirstWords other = WordsOf(1);
  other.fingerprint = 78;
  const Liar liar(AddressOf(1), other, [](DataConnection&, const RequestHeader&) {});
  ASSERT_OK(hosts_->Offer(OfferOf(1)));
  EXPECT_TRUE(Eventually([&] { return ReportOf(0).failures > 0; }));
  EXPECT_THAT(ReportOf(0).last_failure, HasSubstr("another model"));
  ExpectTheSameBits(RequestOf(6));
}

TEST_F(DividedEngineTest, PlansByWhatAHostsSharesTake) {
  // Far less than it does, so that its shares take the least that a correction says, whatever else this machine does.
  offered_ = {.read_bytes_per_second = 1e3, .flops_per_second = 1e3};
  const std::unique_ptr<DataServer> server = StartHost(1);
  const auto rate = [&](int64_t rows) { return hosts_->All().at(0)->Place(0, rows)->rates.read_bytes_per_second; };
  EXPECT_EQ(rate(5), 1e3);
  for (int step = 0; step < RateCorrection::kSamples; ++step) {
    ExpectTheSameBits(RequestOf(5));
    divided_->BeginStep(5);
  }
  EXPECT_NEAR(rate(5), RateCorrection::kLargest * 1e3, 1);
  EXPECT_NEAR(ReportOf(0).computing.few_rows, 1 / RateCorrection::kLargest, 1e-9);
  EXPECT_EQ(rate(9), 1e3) << "no larger step has shown it";
}

TEST_F(DividedEngineTest, PlansByExchangesWhenSeveralInARowAreSlowerThanAnyCorrection) {
  const std::unique_ptr<DataServer> server = StartHost(1);
  const std::shared_ptr<ExpertHost> host = hosts_->All().at(0);
  const double measured = ReportOf(0).cost.exchange_seconds;
  const auto take = [&](int exchanges, double seconds) {
    for (int i = 0; i < exchanges; ++i) {
      host->NoteExchange(RequestOf(1), store_->layout().layer(0), seconds, {.computed_seconds = 0, .waited = true});
    }
  };
  take(4, 100);
  take(1, 1e-5);
  take(4, 110);
  EXPECT_EQ(ReportOf(0).cost.exchange_seconds, measured) << "each was the fault of a packet";
  take(1, 100);
  EXPECT_EQ(ReportOf(0).cost.exchange_seconds, 100) << "the quickest of them";
  EXPECT_EQ(host->Place(0, 1)->exchange_seconds, 100) << "what was known of another network does not correct it";
}

TEST_F(DividedEngineTest, AHostThatOffersNoMoreIsForgotten) {
  divided_ = nullptr;
  ASSERT_OK_AND_ASSIGN(hosts_, ExpertHosts::Create({.words = words_,
                                                    .kernels = KernelsOf(ops_->name()),
                                                    .machine = "here",
                                                    .certificates = "",
                                                    .silence = absl::Milliseconds(100)}));
  ASSERT_OK(hosts_->Offer(OfferOf(1)));
  EXPECT_TRUE(Eventually([&] { return hosts_->All().empty(); }));
}

TEST(KernelsOf, LeavesTheThreadsOut) {
  EXPECT_EQ(KernelsOf("cpu (avx2, 1 thread)"), "avx2");
  EXPECT_EQ(KernelsOf("cpu (avx512, 16 threads)"), "avx512");
  EXPECT_EQ(KernelsOf("cpu (AMX with AVX-512 VNNI, 16 threads)"), "AMX with AVX-512 VNNI");
  EXPECT_EQ(KernelsOf("reference"), "reference");
}

}  // namespace
}  // namespace ferry
