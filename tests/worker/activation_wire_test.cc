#include "worker/activation_wire.h"

#include <cstring>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

constexpr auto kRefused = absl::StatusCode::kInvalidArgument;

const ActivationWords kOwn = {.incarnation = 5, .epoch = 7, .n_embd = 64, .key = std::string(32, 'k')};

TEST(ActivationWords, AreThoseOfTheReceiverAndItsKey) {
  EXPECT_OK(CheckActivationWords(Encode(kOwn), kOwn));
  const auto said = [](auto change) {
    ActivationWords words = kOwn;
    change(words);
    return CheckActivationWords(Encode(words), kOwn);
  };
  EXPECT_THAT(said([](ActivationWords& words) { words.key[31] = 'x'; }), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(said([](ActivationWords& words) { words.key = ""; }), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(said([](ActivationWords& words) { words.incarnation = 6; }),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation is 6, want 5")));
  EXPECT_THAT(said([](ActivationWords& words) { words.epoch = 6; }),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch is 6, want 7")));
  EXPECT_THAT(said([](ActivationWords& words) { words.n_embd = 65; }), StatusIs(kRefused, HasSubstr("n_embd is 65, want 64")));
}

TEST(ActivationWords, AreNotThoseOfAnotherProgramVersionOrKeylessReceiver) {
  auto bytes = Encode(kOwn);
  bytes[0] ^= std::byte{1};
  EXPECT_THAT(CheckActivationWords(bytes, kOwn), StatusIs(kRefused, HasSubstr("first word")));
  bytes = Encode(kOwn);
  bytes[4] = std::byte{9};
  EXPECT_THAT(CheckActivationWords(bytes, kOwn), StatusIs(kRefused, HasSubstr("version is 9")));
  EXPECT_THAT(CheckActivationWords(std::span(bytes).first(63), kOwn), StatusIs(kRefused, HasSubstr("63 bytes")));
  ActivationWords keyless = kOwn;
  keyless.key = "";
  EXPECT_THAT(CheckActivationWords(Encode(keyless), keyless), StatusIs(absl::StatusCode::kPermissionDenied));
}

// Steps of at most 10 rows, messages of at most 6.
class ActivationHeadersTest : public testing::Test {
 protected:
  static ActivationHeader Rows(uint64_t number, uint64_t step, int64_t first_row, int64_t num_rows) {
    return {
        .kind = ActivationKind::kRows, .number = number, .epoch = 7, .step = step, .first_row = first_row, .num_rows = num_rows};
  }
  static ActivationHeader Failure(uint64_t number, uint64_t step, int64_t text_bytes) {
    return {.kind = ActivationKind::kFailure, .number = number, .epoch = 7, .step = step, .text_bytes = text_bytes};
  }
  absl::Status Parse(const ActivationHeader& header) { return headers_.Parse(Encode(header)).status(); }

  ActivationHeaders headers_{/*epoch=*/7, /*max_rows=*/10, /*max_message_rows=*/6};
};

TEST_F(ActivationHeadersTest, FollowEachOther) {
  ASSERT_OK_AND_ASSIGN(const ActivationHeader header, headers_.Parse(Encode(Rows(1, 1, 0, 6))));
  EXPECT_EQ(header.step, 1u);
  EXPECT_EQ(header.num_rows, 6);
  EXPECT_OK(Parse(Rows(2, 1, 6, 4)));
  EXPECT_OK(Parse(Failure(3, 2, 10)));
  EXPECT_OK(Parse(Rows(4, 4, 0, 1)));
  EXPECT_OK(Parse(Failure(5, 4, 10))) << "it failed behind its first row";
}

TEST_F(ActivationHeadersTest, OfAMeasurementBeginAtRowZeroAgainBeforeTheFirstStep) {
  for (const uint64_t number : {1, 3}) {
    EXPECT_OK(Parse(Rows(number, 0, 0, 6)));
    EXPECT_OK(Parse(Rows(number + 1, 0, 6, 4)));
  }
  EXPECT_OK(Parse(Rows(5, 1, 0, 1)));
  EXPECT_THAT(Parse(Rows(6, 0, 0, 1)), StatusIs(kRefused, HasSubstr("step is 0 after 1")));
}

TEST_F(ActivationHeadersTest, AreRefusedByName) {
  EXPECT_THAT(Parse(Rows(2, 1, 0, 1)), StatusIs(kRefused, HasSubstr("number is 2, want 1")));
  ActivationHeader header = Rows(1, 1, 0, 1);
  header.epoch = 6;
  EXPECT_THAT(Parse(header), StatusIs(kRefused, HasSubstr("epoch is 6, want 7")));
  header = Rows(1, 1, 0, 1);
  header.kind = static_cast<ActivationKind>(3);
  EXPECT_THAT(Parse(header), StatusIs(kRefused, HasSubstr("kind is 3")));
  header = Rows(1, 1, 0, 1);
  header.text_bytes = 4;
  EXPECT_THAT(Parse(header), StatusIs(kRefused, HasSubstr("text_bytes is 4")));
  EXPECT_THAT(Parse(Rows(1, 1, 1, 1)), StatusIs(kRefused, HasSubstr("first_row is 1, want 0")));
  EXPECT_THAT(Parse(Rows(1, 1, -1, 1)), StatusIs(kRefused, HasSubstr("first_row is -1")));
  EXPECT_THAT(Parse(Rows(1, 1, INT64_MIN, 1)), StatusIs(kRefused, HasSubstr("first_row")));
  EXPECT_THAT(Parse(Rows(1, 1, 0, 0)), StatusIs(kRefused, HasSubstr("num_rows is 0, want 1 to 10")));
  EXPECT_THAT(Parse(Rows(1, 1, 0, INT64_MAX)), StatusIs(kRefused, HasSubstr("num_rows")));
  EXPECT_THAT(Parse(Rows(1, 1, 0, 7)), StatusIs(kRefused, HasSubstr("num_rows is 7, want at most 6 in a message")));
  EXPECT_THAT(Parse(Failure(1, 1, 0)), StatusIs(kRefused, HasSubstr("text_bytes is 0, want 1 to 1024")));
  EXPECT_THAT(Parse(Failure(1, 1, 1025)), StatusIs(kRefused, HasSubstr("text_bytes is 1025")));
  EXPECT_THAT(Parse(Failure(1, 0, 5)), StatusIs(kRefused, HasSubstr("step is 0")));
  auto bytes = Encode(Rows(1, 1, 0, 1));
  bytes[1] ^= std::byte{1};
  EXPECT_THAT(headers_.Parse(bytes), StatusIs(kRefused, HasSubstr("a message begins with")));
  EXPECT_THAT(headers_.Parse(std::span(bytes).first(10)), StatusIs(kRefused, HasSubstr("10 bytes")));
  EXPECT_OK(Parse(Rows(1, 2, 0, 1))) << "what was refused was not taken";
  EXPECT_THAT(Parse(Rows(2, 1, 0, 1)), StatusIs(kRefused, HasSubstr("step is 1 after 2")));
}

}  // namespace
}  // namespace ferry
