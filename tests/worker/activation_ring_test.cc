#include "worker/activation_ring.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "kernels/ops.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"
#include "tests/worker/send_rows.h"
#include "worker/stage_link_shm.h"

namespace ferry {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr RingShape kShape = {.n_embd = 2, .rows_per_slot = 3, .num_slots = 4};
// Both ends in one process, each with a mapping of its own.
class ActivationRingTest : public testing::Test {
 protected:
  void Write(uint64_t step, int64_t first_row, std::initializer_list<float> values) {
    ASSERT_OK_AND_ASSIGN(const std::span<float> rows, writer_->Reserve(Soon()));
    std::copy(values.begin(), values.end(), rows.begin());
    writer_->Commit(step, first_row, static_cast<int64_t>(values.size()) / kShape.n_embd);
  }
  // Word `index` of the region, as a writer gone wrong may change it.
  std::atomic<uint32_t>& Word(size_t index) { return reinterpret_cast<std::atomic<uint32_t>*>(raw_)[index]; }

  std::unique_ptr<ActivationRing> reader_ = ActivationRing::Create(kShape).value();
  std::unique_ptr<ActivationRing> writer_ = ActivationRing::Map(::dup(reader_->fd()), kShape).value();
  void* raw_ = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader_->fd(), 0);
};

// Where the writer's counter and the first slot's numbers lie: activation_ring.cc.
constexpr size_t kWritten = 64 / 4, kFirstHead = 192 / 4, kRowsOfHead = 3, kErrorOfHead = 4;

TEST_F(ActivationRingTest, GivesRowsInTheOrderInWhichTheyWereWritten) {
  Write(1, 0, {1, 2, 3, 4});
  Write(1, 2, {5, 6});
  ASSERT_OK_AND_ASSIGN(const ActivationRing::Entry first, reader_->Next(Soon()));
  ASSERT_OK_AND_ASSIGN(const ActivationRing::Entry second, reader_->Next(Soon()));
  EXPECT_EQ(first.step, 1u);
  EXPECT_THAT(first.rows, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(second.first_row, 2);
  EXPECT_THAT(second.rows, ElementsAre(5, 6));
}

TEST_F(ActivationRingTest, WritesNoSlotThatTheReaderStillHas) {
  for (int i = 0; i < 4; ++i) Write(1, i, {1, 1});
  EXPECT_THAT(writer_->Reserve(Deadline::In(absl::Milliseconds(20))),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("took no hidden states")));
  ASSERT_OK(reader_->Next(Soon()).status());
  EXPECT_THAT(writer_->Reserve(Deadline::In(absl::ZeroDuration())), StatusIs(absl::StatusCode::kDeadlineExceeded))
      << "taken, not given back";
  reader_->Release();
  EXPECT_OK(writer_->Reserve(Soon()).status());
}

TEST_F(ActivationRingTest, AnnouncesRowsThatComeByAnotherWay) {
  Write(1, 0, {1, 2});
  ASSERT_OK(writer_->Reserve(Soon()).status());
  writer_->CommitAnnouncement(1, 1, 4096);
  ASSERT_OK(reader_->Next(Soon()).status());
  ASSERT_OK_AND_ASSIGN(const ActivationRing::Entry entry, reader_->Next(Soon()));
  EXPECT_EQ(entry.first_row, 1);
  EXPECT_EQ(entry.announced_rows, 4096);
  EXPECT_TRUE(entry.rows.empty());
  reader_->Release();
  EXPECT_THAT(writer_->AwaitReleased(Deadline::In(absl::Milliseconds(10))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  reader_->Release();
  EXPECT_OK(writer_->AwaitReleased(Soon()));
}

TEST_F(ActivationRingTest, RefusesAnAnnouncementOfTooManyRows) {
  ASSERT_OK(writer_->Reserve(Soon()).status());
  writer_->CommitAnnouncement(1, 0, int64_t{1} << 30);
  EXPECT_THAT(reader_->Next(Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("announces is 1073741824")));
}

TEST_F(ActivationRingTest, GoesRoundManyTimesWithBothSidesAtWork) {
  std::thread writer([&] {
    for (int i = 0; i < 5000; ++i) Write(i + 1, 0, {static_cast<float>(i), static_cast<float>(-i)});
  });
  for (int i = 0; i < 5000; ++i) {
    ASSERT_OK_AND_ASSIGN(const ActivationRing::Entry entry, reader_->Next(Soon()));
    ASSERT_EQ(entry.step, static_cast<uint64_t>(i + 1));
    ASSERT_THAT(entry.rows, ElementsAre(i, -i));
    reader_->Release();
  }
  writer.join();
}

TEST_F(ActivationRingTest, SaysThatAStepFailed) {
  writer_->CommitFailure(3, "no token_ids");
  ASSERT_OK_AND_ASSIGN(const ActivationRing::Entry entry, reader_->Next(Soon()));
  EXPECT_EQ(entry.step, 3u);
  EXPECT_EQ(entry.error, "no token_ids");
  EXPECT_TRUE(entry.rows.empty());
  writer_->CommitFailure(4, std::string(10000, 'e'));
  EXPECT_EQ(reader_->Next(Soon())->error.size(), ActivationRing::kMaxErrorBytes);
  writer_->CommitFailure(5, "");
  EXPECT_EQ(reader_->Next(Soon())->error, "it failed");
}

TEST_F(ActivationRingTest, EndsWaitsWhenTheEpochEnds) {
  for (int i = 0; i < 4; ++i) Write(1, i, {1, 1});
  std::thread ender([&] {
    absl::SleepFor(absl::Milliseconds(20));
    writer_->Abort();
    reader_->Abort();
  });
  EXPECT_THAT(writer_->Reserve(Soon()), StatusIs(absl::StatusCode::kAborted));
  ender.join();
  EXPECT_THAT(reader_->Next(Soon()), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(ActivationRingTest, BelievesNoCounterBeyondItsSlots) {
  Word(kWritten) = 5;
  EXPECT_THAT(reader_->Next(Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("5 entries into a ring of 4")));
  Word(kWritten) = UINT32_MAX;
  EXPECT_THAT(reader_->Next(Soon()), StatusIs(absl::StatusCode::kInternal));
}

TEST_F(ActivationRingTest, BelievesNoNumbersBeyondASlot) {
  Write(1, 0, {1, 2});
  Word(kFirstHead + kRowsOfHead) = 4;
  EXPECT_THAT(reader_->Next(Soon()),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("num_rows of the previous worker's hidden states is 4")));
  Word(kFirstHead + kRowsOfHead) = 0;
  EXPECT_THAT(reader_->Next(Soon()), StatusIs(absl::StatusCode::kInternal));
  Word(kFirstHead + kErrorOfHead) = 513;
  EXPECT_THAT(reader_->Next(Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("error has 513 bytes")));
}

TEST_F(ActivationRingTest, MapsNoMemoryOfAnotherShapeOrThatMayShrink) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  RingShape other = kShape;
  other.rows_per_slot = 2;
  EXPECT_THAT(ActivationRing::Map(::dup(reader_->fd()), other), StatusIs(kInvalid, HasSubstr("another shape")));
  other.num_slots = 1024;
  EXPECT_THAT(ActivationRing::Map(::dup(reader_->fd()), other), StatusIs(kInvalid));
  for (const RingShape bad :
       {RingShape{0, 1, 1}, RingShape{2, 0, 1}, RingShape{2, 1, 3}, RingShape{2, 1, 2048}, RingShape{1 << 21, 1, 1}}) {
    EXPECT_THAT(ActivationRing::Create(bad), StatusIs(kInvalid, HasSubstr("ring of hidden states"))) << bad.num_slots;
  }
  const int shrinks = ::memfd_create("shrinks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(::ftruncate(shrinks, 1 << 20), 0);
  EXPECT_THAT(ActivationRing::Map(shrinks, kShape), StatusIs(kInvalid));
}

TEST(RingShapeFor, HoldsAStepAsFarAsMemoryAllows) {
  EXPECT_EQ(RingShapeFor(2880, 2048), (RingShape{2880, 273, 8}));
  EXPECT_EQ(RingShapeFor(2880, 16384), (RingShape{2880, 273, 16})) << "64 MiB are the most";
  EXPECT_EQ(RingShapeFor(64, 1), (RingShape{64, 1, 2})) << "one is read while the other is written";
  EXPECT_EQ(RingShapeFor(1 << 20, 100), (RingShape{1 << 20, 1, 16})) << "a row above the size of a message";
}

// -------------------------------------------------------------------------------------------------- as ends of a stage link

// Each end with a backend of its own, as in two processes.
class RingLinkTest : public testing::Test {
 protected:
  RingLinkTest() {
    std::unique_ptr<ActivationRing> reader = ActivationRing::Create(kShape).value();
    sink_ = MakeRingSink(ActivationRing::Map(::dup(reader->fd()), kShape).value(), sender_ops_.get());
    source_ = MakeRingSource(std::move(reader), ops_.get());
  }
  std::unique_ptr<Ops> ops_ = CreateOps({.kind = "reference"}).value();
  std::unique_ptr<Ops> sender_ops_ = CreateOps({.kind = "reference"}).value();
  std::unique_ptr<ActivationSink> sink_;
  std::unique_ptr<ActivationSource> source_;
};

TEST_F(RingLinkTest, CarriesMoreRowsThanItHolds) {
  std::vector<float> values(100);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  std::thread sender([&] { EXPECT_OK(SendRows(*sink_, 1, values, kShape.n_embd, Soon())); });
  std::vector<float> received;
  while (received.size() < values.size()) {
    ASSERT_OK_AND_ASSIGN(const ActivationChunk chunk, source_->Next(1, static_cast<int64_t>(received.size()) / 2, Soon()));
    received.insert(received.end(), chunk.values.begin(), chunk.values.end());
  }
  sender.join();
  EXPECT_EQ(received, values);
}

TEST_F(RingLinkTest, ForgetsTheRowsOfAStepThatWasGivenUp) {
  ASSERT_OK(SendRows(*sink_, 1, std::vector<float>{1, 1}, 2, Soon()));
  ASSERT_OK(sink_->SendFailure(2, "why not", Soon()));
  ASSERT_OK(SendRows(*sink_, 3, std::vector<float>{3, 3}, 2, Soon()));
  EXPECT_THAT(source_->Next(2, 0, Soon()), StatusIs(absl::StatusCode::kAborted, HasSubstr("why not")));
  ASSERT_OK_AND_ASSIGN(const ActivationChunk chunk, source_->Next(3, 0, Soon()));
  EXPECT_THAT(chunk.values, Each(3));
}

TEST_F(RingLinkTest, RefusesRowsThatDoNotFollow) {
  ASSERT_OK(SendRows(*sink_, 2, std::vector<float>{1, 1}, 2, Soon()));
  EXPECT_THAT(source_->Next(1, 0, Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("those of step 2 came")));
  EXPECT_THAT(source_->Next(2, 1, Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("begin at row 0, want 1")));
}

TEST_F(RingLinkTest, HasItsMemoryPinnedWhileItIsUsed) {
  ASSERT_OK_AND_ASSIGN(const std::span<float> rows, sink_->Reserve(1, Soon()));
  const std::span<const std::byte> bytes = std::as_bytes(rows);
  EXPECT_THAT(sender_ops_->PinHost(bytes, false), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("pinned already")));
  sink_.reset();
  EXPECT_OK(sender_ops_->PinHost(bytes, false)) << "unpinned at its end";
}

}  // namespace
}  // namespace ferry
