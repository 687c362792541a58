// A stage whose layers another worker helps with: boards in memory, and a helper with a device and a link of its own.

#include <atomic>
#include <thread>

#include "tests/worker/tiny_model.h"
#include "worker/help_service.h"

namespace ferry {
namespace {

constexpr int64_t kOwner = 0, kHelper = 1;
constexpr double kNear = 2 * HelpShare::kNearBytesPerSecond;  // the host's memory, which plays the device's, may be slower
constexpr HelpBoardShape kWide = {.n_embd = 0, .max_rows = 256, .max_entries = 512, .max_experts = 8};

const std::vector<float>& Expected() {
  static const auto* const expected = [] {
    TinyPipeline plain(&Model(), 1);
    return new std::vector<float>(plain.Prompt(Tokens(Model(), 200)).value());
  }();
  return *expected;
}

// Memory of a device that both workers reach.
class SharedVector final : public PeerMemory {
 public:
  explicit SharedVector(std::vector<std::byte>* bytes) : bytes_(*bytes) {}
  std::span<std::byte> bytes() const override { return bytes_; }
  const std::string& key() const override { return key_; }

 private:
  std::vector<std::byte>& bytes_;
  const std::string key_ = std::string(PeerMemory::kKeyBytes, 'k');
};

// Both workers' views of two boards.
struct Boards final : PeerMemories {
  Boards(Ops* owner_ops, Ops* helper_ops, HelpBoardShape shape = kWide) {
    shape.n_embd = Model().config.n_embd;
    std::map<int64_t, std::unique_ptr<HelpBoard>> made, mapped;
    for (const int64_t worker : {kOwner, kHelper}) {
      made[worker] = HelpBoard::Create(shape).value();
      mapped[worker] = HelpBoard::Map(::dup(made[worker]->fd()), shape).value();
    }
    memory = std::vector<std::byte>(shape.row_bytes(DType::kF32) + shape.contribution_bytes(DType::kF32));
    owner = std::make_shared<HelpBoards>(kOwner, std::move(made), owner_ops);
    helper = std::make_shared<HelpBoards>(kHelper, std::move(mapped), helper_ops, this);
  }
  // The owner offers its device's memory, and the helper has seen it.
  void Publish(std::span<std::byte> scratch) {
    owner->Publish(&owners);
    helper->Publish(nullptr);
    helper->Settle(scratch);
    if (reached) owner->own().SetReach(kHelper, kNear);
    owner->Hear();
    helper->Hear();
  }
  absl::StatusOr<std::unique_ptr<PeerMemory>> Share(int64_t) override { return Internal("nobody asks"); }
  absl::StatusOr<std::unique_ptr<PeerMemory>> Map(const std::string& key, int64_t bytes) override {
    if (!reached) return FailedPrecondition("as the test wants");
    EXPECT_EQ(key, owners.key());
    EXPECT_EQ(bytes, static_cast<int64_t>(memory.size()));
    return std::make_unique<SharedVector>(&memory);
  }
  bool reached = true;
  std::vector<std::byte> memory;
  SharedVector owners{&memory};
  std::shared_ptr<HelpBoards> owner, helper;
};

class Help : public ::testing::Test {
 protected:
  Help() : boards_(ops_.get(), ops_.get()) {
    pipeline_.stage(0).SetBoards(boards_.owner);
    // Every second absent expert goes to a helper.
    pipeline_.link().place_among = [](const ActivatedExpert& use, uint32_t helpers) {
      if (use.resident == 1) return ExpertPlace::kResident;
      return (helpers & 0xffff) == 1u << kHelper && use.expert % 2 == 1 ? PlaceOfHelper(kHelper) : ExpertPlace::kShip;
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

TEST_F(Help, ChangesNoBitFromDeviceToDevice) {
  boards_.Publish(std::as_writable_bytes(std::span(rows_)));
  ServeWell();
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
  Stop();
  EXPECT_GT(service_->num_computed(), 0u);
  const auto all_zero = [](std::span<const std::byte> bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
  };
  EXPECT_TRUE(all_zero(boards_.owner->own().rows())) << "what goes from device to device is not on the board";
  EXPECT_FALSE(all_zero(boards_.memory));
}

// A board for 50 rows beside device memory for all.
class HelpBesideASmallBoard : public Help {
 protected:
  HelpBesideASmallBoard() {
    HelpBoardShape shape = kWide;
    shape.most_board_rows = 50;
    small_ = std::make_unique<Boards>(ops_.get(), ops_.get(), shape);
    pipeline_.stage(0).SetBoards(small_->owner);
    service_ = HelpService::Create(ops_.get(), &link_, &Model().config, &Model().layout, 3, 512).value();
    small_->helper->own().SetAvailable(true);
    serving_ = std::thread([this] {
      while (!stop_) {
        const uint32_t seen = small_->helper->own().bell();
        if (!small_->helper->Called()) small_->helper->own().WaitForBell(seen, Deadline::In(absl::Milliseconds(10)));
        if (small_->helper->Called()) service_->Serve(*small_->helper, {.in = in_, .contributions = contributions_}, nullptr);
      }
    });
  }
  ~HelpBesideASmallBoard() override { Stop(); }
  std::unique_ptr<Boards> small_;
};

TEST_F(HelpBesideASmallBoard, AStepOfManyRowsIsHelpedWithFromDeviceToDeviceAlone) {
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
  EXPECT_EQ(service_->num_computed(), 0u) << "nobody has published device memory";
  small_->owner->Publish(&small_->owners);  // rings the helper, which maps it
  const Deadline end = Deadline::In(absl::Seconds(60));
  while (small_->owner->own().reach(kHelper) == 0 && !end.Passed()) absl::SleepFor(absl::Milliseconds(1));
  small_->owner->own().SetReach(kHelper, kNear);
  while (service_->num_computed() == 0 && !end.Passed()) {
    EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
  }
  EXPECT_GT(service_->num_computed(), 0u);
}

TEST_F(Help, GoesThroughTheBoardWhereDevicesDoNotReachEachOther) {
  boards_.reached = false;
  boards_.Publish(std::as_writable_bytes(std::span(rows_)));
  EXPECT_EQ(boards_.owner->own().reach(kHelper), 0);
  ServeWell();
  EXPECT_EQ(pipeline_.Prompt(Tokens(Model(), 200)).value(), Expected());
  Stop();
  EXPECT_GT(service_->num_computed(), 0u);
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
