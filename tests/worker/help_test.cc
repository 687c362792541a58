// A stage whose layers another worker helps with: boards in memory, and a helper with a device and a link of its own.

#include <atomic>
#include <thread>

#include "tests/worker/tiny_model.h"
#include "worker/help_service.h"

namespace ferry {
namespace {

constexpr int64_t kOwner = 0, kHelper = 1;
constexpr HelpBoardShape kWide = {.n_embd = 0, .max_rows = 256, .max_entries = 512, .max_experts = 8};

const TinyModel& Model() {
  static const auto* const model = TinyModel::Make().release();
  return *model;
}
const std::vector<float>& Expected() {
  static const auto* const expected = [] {
    TinyPipeline plain(&Model(), 1);
    return new std::vector<float>(plain.Prompt(Tokens(Model(), 200)).value());
  }();
  return *expected;
}

// Both workers' views of two boards.
struct Boards {
  Boards(Ops* owner_ops, Ops* helper_ops) {
    HelpBoardShape shape = kWide;
    shape.n_embd = Model().config.n_embd;
    std::map<int64_t, std::unique_ptr<HelpBoard>> made, mapped;
    for (const int64_t worker : {kOwner, kHelper}) {
      made[worker] = HelpBoard::Create(shape).value();
      mapped[worker] = HelpBoard::Map(::dup(made[worker]->fd()), shape).value();
    }
    owner = std::make_shared<HelpBoards>(kOwner, std::move(made), owner_ops);
    helper = std::make_shared<HelpBoards>(kHelper, std::move(mapped), helper_ops);
  }
  std::shared_ptr<HelpBoards> owner, helper;
};

class Help : public ::testing::Test {
 protected:
  Help() : boards_(ops_.get(), ops_.get()) {
    pipeline_.stage(0).SetBoards(boards_.owner);
    // Every second absent expert goes to whoever helps.
    pipeline_.link().place_among = [](const ActivatedExpert& use, uint32_t helpers) {
      if (use.resident == 1) return ExpertPlace::kResident;
      return helpers == 1u << kHelper && use.expert % 2 == 1 ? PlaceOfHelper(kHelper) : ExpertPlace::kShip;
    };
  }
  ~Help() override { Stop(); }

  // Calls `serve` whenever the helper is called, until Stop.
  void Serve(const std::function<void()>& serve) {
    boards_.helper->own().SetAvailable(true);
    serving_ = std::thread([this, serve] {
      while (!stop_) {
        const uint32_t seen = boards_.helper->own().bell();
        if (!boards_.helper->Called()) boards_.helper->own().WaitForBell(seen, Deadline::In(absl::Milliseconds(10)));
        if (boards_.helper->Called()) serve();
      }
    });
  }
  void Stop() {
    stop_ = true;
    if (serving_.joinable()) serving_.join();
  }
  void ServeWell() {
    service_ = HelpService::Create(ops_.get(), &link_, &Model().config, &Model().layout, 3, 512).value();
    Serve([this] { service_->Serve(*boards_.helper, {.in = in_, .contributions = contributions_}, nullptr); });
  }

  std::unique_ptr<Ops> ops_ = MakeOps();  // the helper's
  FakeLink link_{&Model(), ops_.get()};
  std::vector<float> rows_ = std::vector<float>(256 * Model().config.n_embd),
                     out_ = std::vector<float>(512 * Model().config.n_embd);
  Tensor in_{rows_.data(), DType::kF32, 256, Model().config.n_embd},
      contributions_{out_.data(), DType::kF32, 512, Model().config.n_embd};
  Boards boards_;
  std::unique_ptr<HelpService> service_;
  TinyPipeline pipeline_{
      &Model(), 1, [](StageOptions& options) { options.expert_slot_bytes = 5 * ExpertCache::SlotBytes(Model().layout, 0, 4); }};
  std::atomic<bool> stop_{false};
  std::thread serving_;
};

TEST_F(Help, ChangesNoBit) {
  ServeWell();
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
  const v1::ExpertCounters& counters = pipeline_.counters().back();
  EXPECT_EQ(counters.activated(), counters.resident() + counters.shipped() + counters.on_host());
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200), /*rows_a_step=*/70, /*slot=*/1).value(), Expected());
  Stop();
  EXPECT_GT(service_->num_computed(), 0u);
  EXPECT_TRUE(link_.held.empty());
}

TEST_F(Help, IsNotAskedForInDecode) {
  ServeWell();
  ASSERT_OK(pipeline_.Run({{.slot = 0, .position = 0, .tokens = {1, 2, 3}}}));
  Stop();
  EXPECT_EQ(service_->num_computed(), 0u);
}

TEST_F(Help, AShareThatNobodyTakesIsComputedHere) {
  boards_.helper->own().SetAvailable(true);
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
}

TEST_F(Help, AShareThatFailsIsComputedHere) {
  Serve([this] {
    boards_.helper->Hear();
    HelpBoard& board = *boards_.helper->boards().at(kOwner);
    if (board.Take(kHelper, 4)->has_value()) board.Answer(kHelper, Internal("as the test wants"));
  });
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
}

// One second is how long an owner waits.
TEST_F(Help, AHelperThatNeverAnswersIsAskedOnce) {
  std::atomic<int> taken = 0;
  Serve([&] {
    boards_.helper->Hear();
    taken += boards_.helper->boards().at(kOwner)->Take(kHelper, 4)->has_value();
  });
  const Deadline end = Deadline::In(absl::Seconds(60));
  while (taken == 0 && !end.Passed()) {  // on a busy machine a share may be withdrawn before it is taken
    EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
  }
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200), 256, /*slot=*/1).value(), Expected());
  EXPECT_EQ(taken, 1);
}

TEST_F(Help, AnOwnerWithOtherNumberTypesIsRefused) {
  ServeWell();
  HelpRequest request = {.row_type = DType::kBF16, .contribution_type = DType::kF32};
  request.share.kind = ExpertRequestKind::kCompute;
  request.share.num_rows = 1;
  request.share.uses = {{.expert = 1, .tokens = 1}};
  request.share.entry_rows = {0};
  HelpBoard& board = boards_.owner->own();
  const auto ask = [&] {
    EXPECT_OK(board.Post(kHelper, request));
    boards_.owner->boards().at(kHelper)->Ring();
    return board.WaitForAnswer(kHelper, Deadline::In(absl::Seconds(60)));
  };
  EXPECT_THAT(ask(), StatusIs(absl::StatusCode::kInternal));
  request.row_type = DType::kF32;
  EXPECT_OK(ask());
}

}  // namespace
}  // namespace ferry
