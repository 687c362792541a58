#include "coordinator/cluster/step_answer.h"

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int64_t kAnswerVocab = 4;

std::string Floats(std::vector<float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// The best two of a row, and the whole of another.
const std::vector<LogitsRequest> kWanted = {{.top_n = 2, .target = 1}, {.top_n = kAnswerVocab}};
StepExpectation Expected() {
  return {.worker = WorkerId(1), .epoch = 3, .step = 4, .wanted = kWanted, .vocab_size = kAnswerVocab};
}

internal::v1::StepResponse GoodAnswer() {
  internal::v1::StepResponse response;
  response.set_epoch(3);
  response.set_step(4);
  internal::v1::LogitsRow* const best = response.add_logits();
  best->set_log_sum_exp(2.5f);
  best->set_target_logit(-1);
  best->add_ids(3);
  best->add_ids(0);
  best->set_logits(Floats({2, 1}));
  response.add_logits()->set_logits(Floats({1, 2, 3, 4}));
  return response;
}

TEST(CheckStepResponse, GivesTheRowsThatWereAskedFor) {
  ASSERT_OK_AND_ASSIGN(const std::vector<LogitsResult> rows, CheckStepResponse(GoodAnswer(), Expected()));
  ASSERT_THAT(rows, SizeIs(2));
  EXPECT_THAT(rows[0].ids, ElementsAre(3, 0));
  EXPECT_THAT(rows[0].logits, ElementsAre(2, 1));
  EXPECT_EQ(rows[0].log_sum_exp, 2.5f);
  EXPECT_THAT(rows[1].ids, ElementsAre());
  EXPECT_THAT(rows[1].logits, ElementsAre(1, 2, 3, 4));
}

TEST(CheckStepResponse, TakesNoLogitsOfAWorkerThatWasNotAsked) {
  StepExpectation expected = Expected();
  expected.wanted = {};
  EXPECT_THAT(CheckStepResponse(GoodAnswer(), expected),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("worker 1 sent 2 rows of logits, want 0")));
}

TEST(CheckStepResponse, RefusesWhatIsNotItsAnswer) {
  const auto refused = [](auto spoil, const char* why) {
    internal::v1::StepResponse bad = GoodAnswer();
    spoil(bad);
    EXPECT_THAT(CheckStepResponse(bad, Expected()), StatusIs(absl::StatusCode::kInternal, HasSubstr(why)));
  };
  refused([](auto& bad) { bad.set_epoch(2); }, "not its next");
  refused([](auto& bad) { bad.set_step(5); }, "not its next");
  refused([](auto& bad) { bad.mutable_logits()->RemoveLast(); }, "sent 1 rows of logits, want 2");
  refused([](auto& bad) { bad.mutable_logits(1)->set_logits(Floats({1})); }, "has 4 bytes, want 4 logits");
  refused([](auto& bad) { bad.mutable_logits(0)->add_ids(1); }, "has 3 ids");
  refused([](auto& bad) { bad.mutable_logits(0)->set_ids(1, 4); }, "names token 4 of 4");
  refused([](auto& bad) { bad.mutable_logits(0)->set_ids(1, 3); }, "names token 3 twice");
  const auto add_span = [](auto& bad, const std::string& name) {
    internal::v1::TraceSpan* const span = bad.add_spans();
    span->set_name(name);
    return span;
  };
  refused([&](auto& bad) { add_span(bad, ""); }, "a span's name has 0 bytes");
  refused([&](auto& bad) { add_span(bad, std::string(65, 'x')); }, "65 bytes, want 1 to 64");
  refused([&](auto& bad) { add_span(bad, "back")->set_duration_ns(-1); }, "a span of -1 ns");
  refused([&](auto& bad) { add_span(bad, "nowhere")->set_track(static_cast<internal::v1::TraceSpan::Track>(7)); }, "track 7");
  refused([](auto& bad) { bad.set_code(-7); }, "worker 1 failed in step 4");
  refused([](auto& bad) { bad.set_code(1 << 20); }, "worker 1 failed in step 4");
}

TEST(CheckStepResponse, PassesOnAWorkersOwnErrorInBounds) {
  internal::v1::StepResponse failed = GoodAnswer();
  failed.set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  failed.set_message(std::string(1 << 20, 'x'));
  const absl::Status status = CheckStepResponse(failed, Expected()).status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("worker 1 failed in step 4: xxx")));
  EXPECT_LT(status.message().size(), kMaxErrorBytes + 100);
}

}  // namespace
}  // namespace ferry
