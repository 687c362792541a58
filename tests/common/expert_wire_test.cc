#include "common/expert_wire.h"

#include <cstring>
#include <random>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::HasSubstr;

constexpr MailboxShape kShape = {.n_embd = 8, .max_rows = 4, .max_entries = 16, .max_experts = 32};
constexpr FirstWords kWords = {.incarnation = 7, .fingerprint = 0xabc, .num_layers = 3, .shape = kShape};
constexpr RequestHeader kRequest = {.number = 5, .step = 9, .layer = 2, .num_rows = 2, .num_uses = 2, .num_entries = 3};

TEST(ExpertWire, TakesFirstWordsThatAreItsOwn) { EXPECT_OK(CheckFirstWords(Encode(kWords), kWords)); }

TEST(ExpertWire, NamesWhatDiffersInFirstWords) {
  const auto refusal = [](const auto& change) {
    FirstWords other = kWords;
    change(other);
    return CheckFirstWords(Encode(other), kWords);
  };
  const auto says = [](const char* what) { return StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(what)); };
  EXPECT_THAT(refusal([](FirstWords& words) { words.fingerprint = 1; }), says("another model"));
  EXPECT_THAT(refusal([](FirstWords& words) { words.incarnation = 1; }), says("process"));
  EXPECT_THAT(refusal([](FirstWords& words) { words.num_layers = 4; }), says("num_layers is 4, want 3"));
  EXPECT_THAT(refusal([](FirstWords& words) { words.shape.n_embd = 9; }), says("n_embd is 9, want 8"));
  EXPECT_THAT(refusal([](FirstWords& words) { words.shape.max_rows = 5; }), says("max_rows"));
  EXPECT_THAT(refusal([](FirstWords& words) { words.shape.max_entries = 5; }), says("max_entries"));
  EXPECT_THAT(refusal([](FirstWords& words) { words.shape.max_experts = 5; }), says("max_experts"));
}

TEST(ExpertWire, RefusesAnotherProgramVersionOrByteOrder) {
  auto bytes = Encode(kWords);
  std::swap(bytes[0], bytes[3]);
  EXPECT_THAT(CheckFirstWords(bytes, kWords), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data connection")));
  bytes = Encode(kWords);
  bytes[4] = std::byte{3};
  EXPECT_THAT(CheckFirstWords(bytes, kWords), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version 3, want 2")));
  EXPECT_THAT(CheckFirstWords(std::span(bytes).first(63), kWords), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ExpertWire, BringsARequestOver) {
  ASSERT_OK_AND_ASSIGN(const RequestHeader header, ParseRequestHeader(Encode(kRequest), kShape, 5, kHostKinds));
  EXPECT_EQ(header, kRequest);
  const ExpertRequest request = {.kind = ExpertRequestKind::kCompute,
                                 .step = 9,
                                 .layer = 2,
                                 .num_rows = 2,
                                 .uses = {{.expert = 3, .tokens = 1}, {.expert = 30, .tokens = 2}},
                                 .entry_rows = {1, 0, 1}};
  const std::vector<uint32_t> words = EncodeIds(request);
  ASSERT_EQ(words.size(), IdWords(header));
  const ExpertRequest got = RequestOf(header, words);
  EXPECT_EQ(got.uses, request.uses);
  EXPECT_EQ(got.entry_rows, request.entry_rows);
  EXPECT_OK(CheckExpertRequest(got, kShape, 3));
}

TEST(ExpertWire, RefusesARequestBeyondTheSizesThatWereAgreed) {
  const auto refusal = [](const auto& change) {
    RequestHeader other = kRequest;
    change(other);
    return ParseRequestHeader(Encode(other), kShape, 5, kHostKinds);
  };
  const auto says = [](const char* what) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)); };
  EXPECT_THAT(refusal([](RequestHeader& header) { header.number = 6; }), says("number is 6, want 5"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.num_rows = 5; }), says("num_rows is 5"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.num_rows = -1; }), says("num_rows is 4294967295"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.num_uses = 33; }), says("num_uses is 33"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.num_entries = 17; }), says("num_entries is 17"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.layer = -1; }), says("layer"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.kind = WireKind::kPlan; }), says("kind is 3"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.kind = static_cast<WireKind>(33); }), says("kind is 33"));
  EXPECT_THAT(refusal([](RequestHeader& header) { header.kind = WireKind::kProbe; }), says("num_uses is 2, want at most 0"));
}

TEST(ExpertWire, BringsAPlanOverThatIsLongerThanTheSizes) {
  const RequestHeader plan = {.kind = WireKind::kPlan, .number = 1, .step = 9, .layer = 2, .num_rows = 1000, .num_uses = 2};
  ASSERT_OK_AND_ASSIGN(const RequestHeader header, ParseRequestHeader(Encode(plan), kShape, 1, kCoordinatorKinds));
  EXPECT_EQ(header, plan);
  EXPECT_EQ(RowsBehind(header), 0);
  const ExpertRequest request = {
      .kind = ExpertRequestKind::kPlan,
      .uses = {{.expert = 3, .tokens = 900, .resident = 1}, {.expert = 30, .tokens = 2, .resident = kComing}},
      .entry_rows = {}};
  EXPECT_EQ(RequestOf(header, EncodeIds(request)).uses, request.uses);
}

TEST(ExpertWire, EachKindHasItsCounts) {
  const auto refusal = [](const RequestHeader& header) {
    return ParseRequestHeader(Encode(header), kShape, 1, kCoordinatorKinds);
  };
  const auto says = [](const char* what) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)); };
  EXPECT_THAT(refusal({.kind = WireKind::kRecord, .number = 1, .num_uses = 2}), says("num_uses is 2, want at most 1"));
  EXPECT_THAT(refusal({.kind = WireKind::kRecord, .number = 1, .num_uses = 1, .num_entries = 1}), says("num_entries is 1"));
  EXPECT_THAT(refusal({.kind = WireKind::kPlan, .number = 1, .num_uses = 33}), says("num_uses is 33"));
  EXPECT_THAT(refusal({.kind = WireKind::kProbe, .number = 1, .num_rows = 5}), says("num_rows is 5"));
}

TEST(ExpertWire, AnotherWorkerIsReadAndNotTakenForThisOne) {
  FirstWords other = kWords;
  other.worker = 3;
  other.incarnation = 8;
  ASSERT_OK_AND_ASSIGN(const FirstWords said, ParseFirstWords(Encode(other), kWords));
  EXPECT_EQ(said, other);
  other.incarnation = kWords.incarnation;
  EXPECT_THAT(CheckFirstWords(Encode(other), kWords), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("worker 3")));
}

TEST(ExpertWire, RefusesAnAnswerToAnotherRequest) {
  const AnswerHeader answer = {.number = 5, .step = 9, .layer = 2, .num_entries = 3, .seconds = 0.5};
  ASSERT_OK(ParseAnswerHeader(Encode(answer), kRequest));
  const auto refusal = [&](const auto& change) {
    AnswerHeader other = answer;
    change(other);
    return ParseAnswerHeader(Encode(other), kRequest);
  };
  const auto says = [](const char* what) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)); };
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.number = 4; }), says("number is 4, want 5"));
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.step = 8; }), says("step is 8, want 9"));
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.layer = 1; }), says("layer is 1, want 2"));
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.num_entries = 4; }), says("num_entries is 4, want 3"));
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.text_bytes = 1; }), says("text_bytes"));
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.seconds = -1; }), says("seconds"));
  EXPECT_THAT(refusal([](AnswerHeader& header) { header.code = static_cast<absl::StatusCode>(17); }), says("code is 17"));
  EXPECT_THAT(refusal([](AnswerHeader& header) {
                header.code = absl::StatusCode::kInternal;
                header.num_entries = 0;
                header.text_bytes = kMaxAnswerText + 1;
              }),
              says("text_bytes"));
}

TEST(ExpertWire, AnyBytesAreRefusedOrInRange) {
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    auto bytes = Encode(kRequest);
    for (int change = 0; change < 3; ++change) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    const absl::StatusOr<RequestHeader> header = ParseRequestHeader(bytes, kShape, 5, kHostKinds | kCoordinatorKinds);
    if (!header.ok()) continue;
    EXPECT_LE(header->num_rows, kShape.max_rows);
    EXPECT_LE(IdWords(*header), static_cast<size_t>(3 * kShape.max_experts + kShape.max_entries));
    EXPECT_GE(header->layer, 0);
  }
}

}  // namespace
}  // namespace ferry
