#include "common/shm/message_ring.h"

#include <sys/mman.h>
#include <unistd.h>

#include <thread>

#include "absl/time/clock.h"
#include "common/deadline.h"
#include "tests/testing/soon.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

std::string Text(size_t bytes) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i * 31 + i / 251);
  return text;
}

// Both ends in one process, each with a mapping of its own.
class MessageRingTest : public ::testing::Test {
 protected:
  // Word `index` of the region, as a writer gone wrong may change it.
  std::atomic<uint32_t>& Word(size_t index) { return reinterpret_cast<std::atomic<uint32_t>*>(raw_)[index]; }

  std::unique_ptr<MessageRing> reader_ = MessageRing::Create().value();
  std::unique_ptr<MessageRing> writer_ = MessageRing::Map(::dup(reader_->fd())).value();
  void* raw_ = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader_->fd(), 0);
};

// Where the writer's counter and the first slot's size lie: message_ring.cc.
constexpr size_t kMagicWord = 0, kWritten = 64 / 4, kFirstRest = 192 / 4;

TEST_F(MessageRingTest, GivesMessagesInOrderWhateverTheirLength) {
  for (const size_t bytes : {size_t{1}, size_t{100}, size_t{MessageRing::kSlotBytes}, size_t{MessageRing::kSlotBytes} + 1,
                             size_t{5 * MessageRing::kSlotBytes}, size_t{3}}) {
    ASSERT_OK(writer_->Write(Text(bytes), Soon()));
    EXPECT_EQ(reader_->Read(Soon()).value(), Text(bytes));
  }
}

TEST_F(MessageRingTest, CarriesMoreThanFitsWhileItIsRead) {
  const std::string large = Text(3 * MessageRing::kSlotBytes * MessageRing::kNumSlots + 17);
  std::thread writing([&] {
    for (int i = 0; i < 3; ++i) EXPECT_OK(writer_->Write(large, Soon()));
  });
  for (int i = 0; i < 3; ++i) EXPECT_EQ(reader_->Read(Soon()).value(), large);
  writing.join();
}

TEST_F(MessageRingTest, PassesThousandsFromThreadToThread) {
  std::thread writing([&] {
    for (int i = 0; i < 5000; ++i) ASSERT_OK(writer_->Write(std::to_string(i), Soon()));
  });
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(reader_->Read(Soon()).value(), std::to_string(i));
  writing.join();
}

TEST_F(MessageRingTest, AMessageThatHasNotComeWholeIsWaitedForAgain) {
  EXPECT_THAT(reader_->Read(Deadline::In(absl::Milliseconds(5))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  const std::string large = Text(2 * MessageRing::kSlotBytes * MessageRing::kNumSlots);
  EXPECT_THAT(writer_->Write(large, Deadline::In(absl::Milliseconds(5))), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(reader_->Read(Deadline::In(absl::Milliseconds(5))), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(MessageRingTest, RefusesWhatIsNoMessage) {
  EXPECT_THAT(writer_->Write("", Soon()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(writer_->Write(std::string_view("x", MessageRing::kMaxMessageBytes + 1), Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes")));
}

TEST_F(MessageRingTest, AnAbortEndsWaitsOfItsOwnSide) {
  std::thread aborting([&] {
    absl::SleepFor(absl::Milliseconds(20));
    reader_->Abort();
  });
  EXPECT_THAT(reader_->Read(Soon()), StatusIs(absl::StatusCode::kAborted));
  aborting.join();
  EXPECT_OK(writer_->Write("still", Soon()));
}

TEST_F(MessageRingTest, BelievesNoSizeThatCannotBe) {
  for (const uint32_t size : {0u, static_cast<uint32_t>(MessageRing::kMaxMessageBytes) + 1, 0xffffffffu}) {
    const std::unique_ptr<MessageRing> reader = MessageRing::Create().value();
    auto* const words =
        static_cast<std::atomic<uint32_t>*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader->fd(), 0));
    words[kFirstRest] = size;
    words[kWritten] = 1;
    EXPECT_THAT(reader->Read(Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("bytes are to come"))) << size;
    ::munmap(words, 4096);
  }
}

TEST_F(MessageRingTest, BelievesNoCountBeyondItsSlots) {
  Word(kWritten) = MessageRing::kNumSlots + 1;
  EXPECT_THAT(reader_->Read(Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("slots")));
}

TEST_F(MessageRingTest, NoticesAPartOfAnotherMessage) {
  ASSERT_OK(writer_->Write(Text(2 * MessageRing::kSlotBytes), Soon()));
  Word(kFirstRest + 1) = 5;
  EXPECT_THAT(reader_->Read(Soon()), StatusIs(absl::StatusCode::kInternal, HasSubstr("want 16384")));
}

TEST_F(MessageRingTest, MapsOnlyWhatIsOne) {
  Word(kMagicWord) = 7;
  EXPECT_THAT(MessageRing::Map(::dup(reader_->fd())), StatusIs(absl::StatusCode::kInvalidArgument));
  const Memfd other = CreateMemfd("small", 4096, false).value();
  EXPECT_THAT(MessageRing::Map(::dup(other.fd.get())), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace ferry
