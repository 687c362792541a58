#include "coordinator/experts/expert_exchange.h"

#include <algorithm>
#include <cstring>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/coordinator/experts/demo_experts.h"

namespace ferry {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using ExpertExchangeTest = DemoExperts;

TEST_F(ExpertExchangeTest, ComputesTheSameOverTheMailboxAsByCall) {
  const ExpertRequest request = TwoRows();
  std::vector<float> rows = Rows(2), direct(3 * config_.n_embd);
  ASSERT_OK(exchange_->Compute(WorkerId(0), request, rows, std::span(direct)));

  const MailboxShape shape = {
      .n_embd = config_.n_embd, .max_rows = 4, .max_entries = 8, .max_experts = config_.router.num_experts};
  ASSERT_OK_AND_ASSIGN(const std::string key, exchange_->OpenMailboxes(WorkerId(0), shape));
  ASSERT_OK_AND_ASSIGN(std::vector<UniqueFd> fds,
                       FetchDescriptors(exchange_->socket_name(), key, Deadline::In(absl::Seconds(5))));
  ASSERT_EQ(fds.size(), size_t{1 + kMailboxesOfAWorker});
  ASSERT_OK_AND_ASSIGN(const ShmArena arena, ShmArena::MapReadOnly(fds[0].Release(), store_->layout().bytes()));
  std::vector<std::unique_ptr<ExpertMailbox>> mailboxes;
  for (int i = 0; i < kMailboxesOfAWorker; ++i) {
    ASSERT_OK_AND_ASSIGN(mailboxes.emplace_back(), ExpertMailbox::Map(fds[1 + i].Release(), shape));
    std::memcpy(mailboxes[i]->rows().data(), rows.data(), rows.size() * sizeof(float));
    ASSERT_OK(mailboxes[i]->Post(request));
  }
  for (const std::unique_ptr<ExpertMailbox>& mailbox : mailboxes) {
    ASSERT_OK(mailbox->WaitForAnswer(Deadline::In(absl::Seconds(60)), nullptr));
    EXPECT_EQ(std::memcmp(mailbox->contributions().data(), direct.data(), direct.size() * sizeof(float)), 0);
  }
}

TEST_F(ExpertExchangeTest, GivesARowTheSameBitsAloneAndAmongOthers) {
  std::vector<float> rows = Rows(2), together(3 * config_.n_embd), alone(config_.n_embd);
  ASSERT_OK(exchange_->Compute(WorkerId(0), TwoRows(), rows, std::span(together)));
  ExpertRequest request = TwoRows();
  request.uses = {{.expert = 5, .tokens = 1}};
  request.entry_rows = {1};
  ASSERT_OK(exchange_->Compute(WorkerId(0), request, rows, std::span(alone)));
  EXPECT_EQ(std::memcmp(alone.data(), together.data() + 2 * config_.n_embd, alone.size() * sizeof(float)), 0);
}

TEST_F(ExpertExchangeTest, RefusesAnotherIncarnation) {
  ExpertRequest request = TwoRows();
  request.incarnation = 5;
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  EXPECT_THAT(exchange_->Compute(WorkerId(0), request, rows, std::span(out)), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(ExpertExchangeTest, RefusesAStepThatNobodyWasSent) {
  ExpertRequest request = TwoRows();
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  exchange_->BeginEpoch();
  exchange_->NoteStep(1, 2);
  request.step = UINT64_MAX;
  EXPECT_THAT(exchange_->Compute(WorkerId(0), request, rows, std::span(out)),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("has not begun")));
  request.step = 1;
  EXPECT_OK(exchange_->Compute(WorkerId(0), request, rows, std::span(out))) << "a refused request is no step";
}

TEST_F(ExpertExchangeTest, RefusesAStepThatIsOverUntilANewEpochBegins) {
  ExpertRequest request = TwoRows();
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  request.step = 9;
  ASSERT_OK(exchange_->Compute(WorkerId(0), request, rows, std::span(out)));
  request.step = 8;
  EXPECT_THAT(exchange_->Compute(WorkerId(0), request, rows, std::span(out)),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("step 8 is over")));
  exchange_->BeginEpoch();
  exchange_->NoteStep(8, 2);
  EXPECT_OK(exchange_->Compute(WorkerId(0), request, rows, std::span(out)));
}

TEST_F(ExpertExchangeTest, RefusesALayerOfAnotherWorker) {
  ExpertRequest request = TwoRows();
  request.layer = 3;
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  EXPECT_THAT(exchange_->Compute(WorkerId(0), request, rows, std::span(out)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer")));
}

TEST_F(ExpertExchangeTest, RefusesIdsThatAreHostile) {
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  const auto refused = [&](std::vector<ActivatedExpert> uses, std::vector<int32_t> entry_rows, const char* field) {
    ExpertRequest request = TwoRows();
    request.uses = std::move(uses);
    request.entry_rows = std::move(entry_rows);
    EXPECT_THAT(exchange_->Compute(WorkerId(0), request, rows, std::span(out)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field)));
  };
  refused({{.expert = 32, .tokens = 1}}, {0}, "expert");
  refused({{.expert = -1232513024, .tokens = 1}}, {0}, "expert");  // the id that crashed a single-process engine
  refused({{.expert = 5, .tokens = 1}, {.expert = 5, .tokens = 1}}, {0, 1}, "expert");
  refused({{.expert = 5, .tokens = 1}, {.expert = 3, .tokens = 1}}, {0, 1}, "expert");
  refused({{.expert = 5, .tokens = 0}}, {}, "tokens");
  refused({{.expert = 5, .tokens = 2}}, {0}, "entr");
  refused({{.expert = 5, .tokens = 1}}, {2}, "row");
  refused({{.expert = 5, .tokens = 1}}, {-1}, "row");
}

TEST_F(ExpertExchangeTest, PlansByTheRatesAndTheSlots) {
  ExpertRequest request = PlanOf({{.expert = 1, .tokens = 400}, {.expert = 2, .tokens = 1, .resident = 1}});
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kShip, ExpertPlace::kResident));
  exchange_->UpdatePeer(WorkerId(0), {.num_slots = 0, .link_bytes_per_second = 100e9});
  request.uses[1].resident = 0;
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), Each(ExpertPlace::kHost));
}

TEST_F(ExpertExchangeTest, PlansByTheLinksRateBesideTheHostOnceItIsKnown) {
  const ExpertRequest request = PlanOf({{.expert = 1, .tokens = 400}});
  const PlannerRates host = {.host = {.read_bytes_per_second = 1e9, .flops_per_second = 1e9}};
  exchange_->SetRates(host, {1});  // a byte a second
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kHost));
  exchange_->UpdatePeer(WorkerId(0), {.num_slots = 8, .link_bytes_per_second = 100e9});
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kHost)) << "100 GB/s is its rate alone";
  exchange_->SetRates(host, {0});
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kShip)) << "nothing better is known";
}

TEST_F(ExpertExchangeTest, PlansByWhatAnExchangeCostsTheWorker) {
  const ExpertRequest request = PlanOf({{.expert = 1, .tokens = 9}});
  exchange_->SetRates({.host = {.read_bytes_per_second = 1e12, .flops_per_second = 1e15}}, {});
  PeerRates rates = {.num_slots = 8, .link_bytes_per_second = 1e6};
  exchange_->UpdatePeer(WorkerId(0), rates);
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kHost));
  rates.exchange = {.exchange_seconds = 60};
  exchange_->UpdatePeer(WorkerId(0), rates);
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kShip));
  rates.exchange = {.row_seconds = 60};
  exchange_->UpdatePeer(WorkerId(0), rates);
  EXPECT_THAT(*exchange_->Plan(WorkerId(0), request), ElementsAre(ExpertPlace::kShip));
}

// Whether plans of large steps follow what steps took, and what they leave out.
class CorrectedRatesTest : public ExpertExchangeTest {
 protected:
  void SetUp() override {
    ExpertExchangeTest::SetUp();
    ASSERT_OK(exchange_->OpenMailboxes(
        WorkerId(0), {.n_embd = config_.n_embd, .max_rows = 4, .max_entries = 8, .max_experts = config_.router.num_experts}));
    exchange_->SetRates({.host = kHost}, {1e9});
  }
  // Of eight experts. Copying one should take the same time as computing it on the host.
  int64_t OnHost(int32_t num_rows = 500) {
    ExpertRequest request = PlanOf({}, num_rows);
    for (int32_t expert = 0; expert < 8; ++expert) request.uses.push_back({.expert = expert, .tokens = 1});
    const std::vector<ExpertPlace> places = exchange_->Plan(WorkerId(0), request).value();
    return std::count(places.begin(), places.end(), ExpertPlace::kHost);
  }
  // A step whose copies took `times` as long as at the rate that was measured.
  static v1::ExpertCounters Copied(double times) {
    v1::ExpertCounters counters;
    counters.set_bytes_shipped(1e9);
    counters.set_copy_busy_seconds(times);
    counters.set_timed_seconds(2 * times);
    return counters;
  }
  void Copy(const v1::ExpertCounters& counters, int64_t num_rows = 500) {
    for (int step = 0; step < RateCorrection::kSamples; ++step) exchange_->NoteCopies(WorkerId(0), num_rows, counters);
  }
  static constexpr ExpertRates kHost = {.read_bytes_per_second = 1e9, .flops_per_second = 1e15};
};

TEST_F(CorrectedRatesTest, GiveASlowLinkLessAndMoreAgainWhenItRecovers) {
  EXPECT_EQ(OnHost(), 4);
  EXPECT_EQ(exchange_->LinkSlowdown(WorkerId(0)), 0) << "no step has shown it";
  exchange_->NoteCopies(WorkerId(0), 500, Copied(100));
  EXPECT_EQ(OnHost(), 4) << "one slow step";
  Copy(Copied(3));
  EXPECT_NEAR(exchange_->LinkSlowdown(WorkerId(0)), 3, 1e-9);
  EXPECT_EQ(OnHost(), 6);
  Copy(Copied(1));
  EXPECT_EQ(OnHost(), 4);
}

TEST_F(CorrectedRatesTest, LeaveOutStepsThatDoNotShowTheLink) {
  Copy(Copied(8), /*num_rows=*/8);  // decode
  v1::ExpertCounters counters = Copied(8);
  counters.set_computed_for_others(3);  // whose bytes are not among those shipped
  Copy(counters);
  counters = Copied(8);
  counters.set_timed_seconds(0);  // too small for the device's clock
  Copy(counters);
  exchange_->NoteCopies(WorkerId(7), 500, Copied(8));  // has no place
  EXPECT_EQ(OnHost(), 4);
  AddFirstPeer();
  Copy(Copied(8));
  EXPECT_EQ(OnHost(), 4) << "without a mailbox its records come over the network";
}

TEST_F(CorrectedRatesTest, FollowTheHostsEngine) {
  // Far slower than it is, so that its steps take the least that a correction says, whatever else this machine does.
  const ExpertRates slow = {.read_bytes_per_second = 1e3, .flops_per_second = 1e3};
  engine_->SetRates(slow);
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  for (int step = 0; step < RateCorrection::kSamples; ++step) {
    ASSERT_OK(exchange_->Compute(WorkerId(0), TwoRows(), rows, std::span(out)));
    exchange_->NoteStep(step + 1, 2);
  }
  EXPECT_NEAR(engine_->Slowdown(2), 1 / RateCorrection::kLargest, 1e-9);
  EXPECT_EQ(engine_->Slowdown(500), 1) << "no larger step has shown it";
  EXPECT_GE(OnHost(/*num_rows=*/8), 7) << "an eighth of the time";
  EXPECT_EQ(OnHost(), 4);
  engine_->SetRates({});
  EXPECT_EQ(OnHost(/*num_rows=*/8), 4) << "given by hand";
}

TEST_F(ExpertExchangeTest, SharesTheHostAmongWorkersThatAreAtDifferentSteps) {
  exchange_->AddPeer({.worker = WorkerId(1),
                      .incarnation = Incarnation(78),
                      .first_layer = 3,
                      .end_layer = 4,
                      .num_slots = 8,
                      .link_bytes_per_second = 100e9});
  ExpertRequest request = PlanOf({});
  for (int32_t expert = 0; expert < 8; ++expert) request.uses.push_back({.expert = expert, .tokens = 10});
  // Copying an expert takes the same time as computing it on the host.
  exchange_->SetRates({.host = {.read_bytes_per_second = 1e9, .flops_per_second = 1e15}}, {1e9, 1e9});
  const auto on_host = [&] {
    const std::vector<ExpertPlace> places = exchange_->Plan(WorkerId(0), request).value();
    return std::count(places.begin(), places.end(), ExpertPlace::kHost);
  };
  EXPECT_EQ(on_host(), 4);
  ExpertRequest others = request;
  others.incarnation = 78;
  others.layer = 3;
  ASSERT_OK(exchange_->Plan(WorkerId(1), others).status());
  EXPECT_EQ(on_host(), 4) << "the same step: only one of them is at it";
  int64_t shared = 4;
  for (int i = 0; i < 100 && shared == 4; ++i) {  // more than 20 ms may pass between two calls on a busy machine
    ++others.step;
    ASSERT_OK(exchange_->Plan(WorkerId(1), others).status());
    shared = on_host();
  }
  EXPECT_LT(shared, 4);
  absl::SleepFor(absl::Milliseconds(30));
  EXPECT_EQ(on_host(), 4) << "the other has ended its step";
}

TEST_F(ExpertExchangeTest, ForgetsAPeerThatLeft) {
  exchange_->RemovePeer(WorkerId(0));
  std::vector<float> rows = Rows(2), out(3 * config_.n_embd);
  EXPECT_THAT(exchange_->Compute(WorkerId(0), TwoRows(), rows, std::span(out)), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(ExpertExchangeTest, HandsDescriptorsToTheHolderOfTheKeyAlone) {
  const MailboxShape shape = {
      .n_embd = config_.n_embd, .max_rows = 4, .max_entries = 8, .max_experts = config_.router.num_experts};
  ASSERT_OK(exchange_->OpenMailboxes(WorkerId(0), shape));
  EXPECT_THAT(FetchDescriptors(exchange_->socket_name(), "guess", Deadline::In(absl::Seconds(5))),
              StatusIs(absl::StatusCode::kNotFound));
}

// Two workers with mailboxes. Worker 1 owns the last layer and has nothing to do.
class HelpTest : public ExpertExchangeTest {
 protected:
  static constexpr HelpBoardShape kShape = {
      .n_embd = 32, .max_rows = 600, .max_entries = 1200, .max_experts = 8, .most_board_rows = 500};

  void AddHelper(bool has_gpu = false) {
    const MailboxShape shape = {
        .n_embd = config_.n_embd, .max_rows = 4, .max_entries = 8, .max_experts = config_.router.num_experts};
    exchange_->AddPeer({.worker = WorkerId(1),
                        .incarnation = Incarnation(78),
                        .first_layer = 3,
                        .end_layer = 4,
                        .num_slots = 8,
                        .link_bytes_per_second = 100e9,
                        .has_gpu = has_gpu});
    ASSERT_OK(exchange_->OpenMailboxes(WorkerId(0), shape).status());
    ASSERT_OK(exchange_->OpenMailboxes(WorkerId(1), shape).status());
  }
  // How many of eight experts worker 1 computes for worker 0, if worker 0 says that `helpers` have nothing to do.
  int64_t Helped(uint32_t helpers, int32_t num_rows = 500, int32_t tokens = 100) {
    ExpertRequest request = PlanOf({}, num_rows);
    for (int32_t expert = 0; expert < 8; ++expert) request.uses.push_back({.expert = expert, .tokens = tokens});
    request.helpers = helpers | on_device_ << kMaxHelpers;
    const std::vector<ExpertPlace> places = exchange_->Plan(WorkerId(0), request).value();
    return std::count(places.begin(), places.end(), PlaceOfHelper(1));
  }
  uint32_t on_device_ = 0;  // of these, whose devices reach each other's memory
};

TEST_F(HelpTest, AsksWorkersThatHaveNothingElseToDo) {
  exchange_->SetHelp(HelpMode::kEven);
  AddHelper();
  const HelpOffer offer = exchange_->OfferHelp(kShape);
  EXPECT_EQ(offer.keys.size(), 2u);
  EXPECT_EQ(Helped(0b10), 4);
  EXPECT_EQ(Helped(0), 0);
  EXPECT_EQ(Helped(0b101), 0) << "nobody is its own helper, and there is no worker 2";
  EXPECT_EQ(Helped(0b10, 501), 0) << "more rows than the board holds";
  on_device_ = 0b10;
  EXPECT_EQ(Helped(0b10, 501), 4) << "they go from device to device";
  EXPECT_EQ(Helped(0b10, 601), 0) << "more rows than a device holds";
}

TEST_F(HelpTest, AsksWhereALinkIsTheSlowestPart) {
  exchange_->SetHelp(HelpMode::kAuto);
  AddHelper();
  exchange_->OfferHelp(kShape);
  EXPECT_EQ(Helped(0b10), 0) << "the links are far faster than a request and its answer";
  exchange_->SetRates({.host = {.read_bytes_per_second = 1, .flops_per_second = 1}}, {1e6, 1e6});
  EXPECT_GT(Helped(0b10, /*num_rows=*/9, /*tokens=*/2), 1);
  EXPECT_EQ(Helped(0b10), 0) << "rows and contributions have more bytes than these small experts";
  exchange_->SetRates({.host = {.read_bytes_per_second = 1, .flops_per_second = 1}}, {1e6, 1e4});
  EXPECT_EQ(Helped(0b10, /*num_rows=*/9, /*tokens=*/2), 0) << "a hundred times slower";
}

TEST_F(HelpTest, AsksNoWorkerOfAnotherKind) {
  exchange_->SetHelp(HelpMode::kEven);
  AddHelper(/*has_gpu=*/true);
  exchange_->OfferHelp(kShape);
  EXPECT_EQ(Helped(0b10), 0);
}

TEST_F(HelpTest, HandsBoardsToEachWorkerOnceAnEpoch) {
  exchange_->SetHelp(HelpMode::kAuto);
  AddHelper();
  const HelpOffer earlier = exchange_->OfferHelp(kShape), offer = exchange_->OfferHelp(kShape);
  const Deadline soon = Deadline::In(absl::Seconds(60));
  EXPECT_THAT(FetchDescriptors(earlier.socket, earlier.keys.at(WorkerId(0)), soon), StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK_AND_ASSIGN(std::vector<UniqueFd> descriptors, FetchDescriptors(offer.socket, offer.keys.at(WorkerId(1)), soon));
  ASSERT_EQ(descriptors.size(), 2u);
  EXPECT_OK(HelpBoard::Map(descriptors[0].Release(), kShape).status());
}

TEST_F(HelpTest, OffersNothingToOneWorkerOrWhenItIsOff) {
  exchange_->SetHelp(HelpMode::kAuto);
  EXPECT_TRUE(exchange_->OfferHelp(kShape).keys.empty());
  exchange_->SetHelp(HelpMode::kOff);
  AddHelper();
  EXPECT_TRUE(exchange_->OfferHelp(kShape).keys.empty());
}

}  // namespace
}  // namespace ferry
