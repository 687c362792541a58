#include "common/shm/help_board.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;
constexpr int64_t kLayers = 6;
constexpr HelpBoardShape kShape = {.n_embd = 4, .max_rows = 20, .max_entries = 40, .max_experts = 32, .most_board_rows = 8};

Deadline Shortly() { return Deadline::In(absl::Milliseconds(5)); }

// Rows 0 and 2 through expert 3, row 1 through expert 9.
HelpRequest SomeShare() {
  HelpRequest request = {.row_type = DType::kBF16, .contribution_type = DType::kF32, .first_entry = 5};
  request.share.kind = ExpertRequestKind::kCompute;
  request.share.step = 7;
  request.share.layer = 2;
  request.share.num_rows = 3;
  request.share.uses = {{3, 2, 0}, {9, 1, 0}};
  request.share.entry_rows = {0, 2, 1};
  return request;
}

// The same board in two processes.
struct Ends {
  std::unique_ptr<HelpBoard> owner, helper;
};
Ends MakeEnds() {
  Ends ends;
  ends.owner = *HelpBoard::Create(kShape);
  ends.helper = *HelpBoard::Map(::dup(ends.owner->fd()), kShape);
  return ends;
}

TEST(HelpBoard, CarriesAShareAndItsAnswer) {
  Ends ends = MakeEnds();
  ends.owner->rows()[17] = std::byte{42};
  EXPECT_FALSE(ends.helper->Posted(1));
  ASSERT_OK(ends.owner->Post(1, SomeShare()));
  EXPECT_TRUE(ends.helper->Posted(1));
  EXPECT_FALSE(ends.helper->Posted(0));
  ASSERT_OK_AND_ASSIGN(const std::optional<HelpRequest> request, ends.helper->Take(1, kLayers));
  ASSERT_TRUE(request.has_value());
  EXPECT_EQ(request->share.step, 7u);
  EXPECT_EQ(request->share.layer, 2);
  EXPECT_EQ(request->share.num_rows, 3);
  EXPECT_EQ(request->share.uses, SomeShare().share.uses);
  EXPECT_EQ(request->share.entry_rows, SomeShare().share.entry_rows);
  EXPECT_EQ(request->row_type, DType::kBF16);
  EXPECT_EQ(request->contribution_type, DType::kF32);
  EXPECT_EQ(request->first_entry, 5);
  EXPECT_EQ(ends.helper->rows()[17], std::byte{42});
  ends.helper->contributions()[3] = std::byte{7};
  ends.helper->Answer(1, absl::OkStatus());
  EXPECT_OK(ends.owner->WaitForAnswer(1, Soon()));
  EXPECT_EQ(ends.owner->contributions()[3], std::byte{7});
  EXPECT_OK(ends.owner->Post(1, SomeShare())) << "the last one has ended";
}

TEST(HelpBoard, KeepsTheSharesOfSeveralHelpersApart) {
  Ends ends = MakeEnds();
  HelpRequest other = SomeShare();
  other.first_entry = 8;
  other.share.uses = {{4, 1, 0}};
  other.share.entry_rows = {2};
  ASSERT_OK(ends.owner->Post(0, SomeShare()));
  ASSERT_OK(ends.owner->Post(15, other));
  ASSERT_OK_AND_ASSIGN(const auto last, ends.helper->Take(15, kLayers));
  ends.helper->Answer(15, InvalidArgument("no"));
  ASSERT_OK_AND_ASSIGN(const auto first, ends.helper->Take(0, kLayers));
  EXPECT_EQ(last->share.entry_rows, other.share.entry_rows);
  EXPECT_EQ(first->share.entry_rows, SomeShare().share.entry_rows);
  EXPECT_THAT(ends.owner->WaitForAnswer(15, Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("worker 15")));
  EXPECT_THAT(ends.owner->WaitForAnswer(0, Shortly()), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(HelpBoard, AShareIsWithdrawnOrTakenNeverBoth) {
  Ends ends = MakeEnds();
  ASSERT_OK(ends.owner->Post(1, SomeShare()));
  EXPECT_TRUE(ends.owner->Withdraw(1));
  EXPECT_FALSE(ends.owner->Withdraw(1));
  EXPECT_EQ(ends.helper->Take(1, kLayers).value(), std::nullopt);
  ASSERT_OK(ends.owner->Post(1, SomeShare()));
  ASSERT_TRUE(ends.helper->Take(1, kLayers).value().has_value());
  EXPECT_FALSE(ends.owner->Withdraw(1));
  EXPECT_THAT(ends.owner->Post(1, SomeShare()), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(HelpBoard, ALateAnswerIsNotThatOfALaterShare) {
  Ends ends = MakeEnds();
  ASSERT_OK(ends.owner->Post(1, SomeShare()));
  ASSERT_TRUE(ends.helper->Take(1, kLayers).value().has_value());
  EXPECT_THAT(ends.owner->WaitForAnswer(1, Shortly()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  ends.helper->Answer(1, absl::OkStatus());
  ASSERT_OK(ends.owner->Post(1, SomeShare()));
  EXPECT_THAT(ends.owner->WaitForAnswer(1, Shortly()), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(HelpBoard, RefusesToPostMoreThanItHolds) {
  Ends ends = MakeEnds();
  HelpRequest request = SomeShare();
  request.first_entry = 14;
  EXPECT_THAT(ends.owner->Post(1, request), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("entries")));
  request = SomeShare();
  request.share.num_rows = 9;
  EXPECT_THAT(ends.owner->Post(1, request), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("num_rows")));
  EXPECT_THAT(ends.owner->Post(16, SomeShare()), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("helper")));
}

TEST(HelpBoard, RefusesABadShareAndAnswersIt) {
  const auto refused = [](void (*change)(HelpRequest&)) {
    Ends ends = MakeEnds();
    HelpRequest request = SomeShare();
    change(request);
    EXPECT_OK(ends.owner->Post(1, request));
    const absl::Status taken = ends.helper->Take(1, kLayers).status();
    EXPECT_THAT(ends.owner->WaitForAnswer(1, Soon()), StatusIs(absl::StatusCode::kInternal));
    return taken;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(refused([](HelpRequest& r) { r.share.layer = kLayers; }), StatusIs(kInvalid, HasSubstr("layer")));
  EXPECT_THAT(refused([](HelpRequest& r) { r.share.uses[1].expert = 3; }), StatusIs(kInvalid, HasSubstr("uses[1]")));
  EXPECT_THAT(refused([](HelpRequest& r) { r.share.uses[0].tokens = 3; }), StatusIs(kInvalid, HasSubstr("entry_rows")));
  EXPECT_THAT(refused([](HelpRequest& r) { r.share.entry_rows[1] = 3; }), StatusIs(kInvalid, HasSubstr("entry_rows[1]")));
}

TEST(HelpBoard, NumbersThatAnotherProcessSpoiledLeadNowhere) {
  Ends ends = MakeEnds();
  const off_t bytes = ::lseek(ends.owner->fd(), 0, SEEK_END);
  auto* const raw = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ends.owner->fd(), 0));
  ASSERT_NE(raw, MAP_FAILED);
  ASSERT_OK(ends.owner->Post(1, SomeShare()));
  // All words of the page of numbers but the request's state, which is the only one that is 5.
  for (off_t at = 64; at + 4 <= 4096; at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, raw + at, 4);
    if (word != (1u << 2 | 1u)) std::memset(raw + at, 0xff, 4);
  }
  EXPECT_THAT(ends.helper->Take(1, kLayers), StatusIs(absl::StatusCode::kInvalidArgument));
  ::munmap(raw, bytes);
}

TEST(HelpBoard, ABellWakesItsOwner) {
  Ends ends = MakeEnds();
  const uint32_t seen = ends.owner->bell();
  ends.owner->WaitForBell(seen, Shortly());
  EXPECT_EQ(ends.owner->bell(), seen);
  std::thread ringing([&] { ends.helper->Ring(); });
  while (ends.owner->bell() == seen) ends.owner->WaitForBell(seen, Soon());
  ringing.join();
  EXPECT_FALSE(ends.helper->available());
  ends.owner->SetAvailable(true);
  EXPECT_TRUE(ends.helper->available());
}

TEST(HelpBoard, RefusesMemoryOfAnotherShape) {
  const auto board = *HelpBoard::Create(kShape);
  HelpBoardShape other = kShape;
  other.max_entries = 39;
  EXPECT_THAT(HelpBoard::Map(::dup(board->fd()), other), StatusIs(absl::StatusCode::kInvalidArgument));
  other = kShape;
  other.most_board_rows = 7;
  EXPECT_THAT(HelpBoard::Map(::dup(board->fd()), other), StatusIs(absl::StatusCode::kInvalidArgument));
  other.max_rows = 0;
  EXPECT_THAT(HelpBoard::Create(other), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("max_rows")));
  other = kShape;
  other.most_board_rows = 0;
  EXPECT_THAT(HelpBoard::Create(other), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("most_board_rows")));
}

TEST(HelpBoard, AShareOnADeviceMayHaveMoreRowsThanTheBoard) {
  Ends ends = MakeEnds();
  HelpRequest request = SomeShare();
  request.on_device = true;
  request.first_entry = 30;
  request.share.num_rows = 20;
  request.share.entry_rows = {0, 19, 1};
  ASSERT_OK(ends.owner->Post(1, request));
  ASSERT_OK_AND_ASSIGN(const std::optional<HelpRequest> taken, ends.helper->Take(1, kLayers));
  ASSERT_TRUE(taken.has_value());
  EXPECT_TRUE(taken->on_device);
  EXPECT_EQ(taken->first_entry, 30);
  EXPECT_EQ(taken->share.entry_rows, request.share.entry_rows);
  ends.helper->Answer(1, absl::OkStatus());
  ASSERT_OK(ends.owner->WaitForAnswer(1, Soon()));
  request.first_entry = 38;
  EXPECT_THAT(ends.owner->Post(1, request), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("entries")));
}

TEST(HelpBoard, TellsOfDeviceMemory) {
  Ends ends = MakeEnds();
  EXPECT_EQ(ends.helper->memory_key(), std::nullopt);
  ends.owner->PublishMemory({});
  EXPECT_EQ(ends.helper->memory_key(), "");
  std::string key(HelpBoard::kKeyBytes, 'x');
  key[3] = '\0';
  ends.owner->PublishMemory(std::as_bytes(std::span(key)));
  EXPECT_EQ(ends.helper->memory_key(), key);
  EXPECT_EQ(ends.owner->reach(2), 0);
  ends.helper->SetReach(2, 150e9);
  EXPECT_EQ(ends.owner->reach(2), 150e9);
}

TEST(HelpBoard, TellsWhenItsOwnerWillHelp) {
  Ends ends = MakeEnds();
  EXPECT_FALSE(ends.helper->AvailableWithin(absl::Hours(2)));
  ends.owner->ExpectAvailable(absl::Minutes(10));
  EXPECT_FALSE(ends.helper->AvailableWithin(absl::Minutes(5)));
  EXPECT_TRUE(ends.helper->AvailableWithin(absl::Minutes(11)));
  ends.owner->ExpectAvailable(absl::InfiniteDuration());
  EXPECT_FALSE(ends.helper->AvailableWithin(absl::Minutes(11)));
  ends.owner->SetAvailable(true);
  EXPECT_TRUE(ends.helper->AvailableWithin(absl::ZeroDuration()));
}

}  // namespace
}  // namespace ferry
