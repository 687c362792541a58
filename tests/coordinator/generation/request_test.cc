#include "coordinator/generation/request.h"

#include <cmath>

#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RecordingSink final : public GenerationSink {
 public:
  void Send(v1::GenerateResponse response) override {
    EXPECT_FALSE(closed);
    responses.push_back(std::move(response));
  }
  void Close(const absl::Status& end) override {
    EXPECT_FALSE(closed) << "closed once";
    closed = true;
    status = end;
  }
  std::string text() const {
    std::string all;
    for (const auto& response : responses) all += response.text();
    return all;
  }
  std::vector<uint32_t> ids() const {
    std::vector<uint32_t> all;
    for (const auto& response : responses) all.insert(all.end(), response.token_ids().begin(), response.token_ids().end());
    return all;
  }
  const v1::Finish& finish() const { return responses.back().finish(); }

  std::vector<v1::GenerateResponse> responses;
  bool closed = false;
  absl::Status status;
};

// Ids 0 to 255 are bytes; 256 "he", 257 <|bos|>, 258 <|return|> (ends a generation).
class RequestTest : public ::testing::Test {
 protected:
  static constexpr int32_t kBos = 257, kEnd = 258, kVocab = 259;

  void SetUp() override {
    VocabularyData data = TinyVocabulary({"h e"}, {{"<|bos|>", TokenType::kControl}, {"<|return|>", TokenType::kControl}});
    data.bos = kBos;
    data.eos = kEnd;
    data.add_bos = true;
    ASSERT_OK_AND_ASSIGN(tokenizer_, Tokenizer::Create(data));
    tokens_ = std::make_unique<TokenizerTokens>(tokenizer_.get());
    constraints_ = std::make_unique<constraint::ConstraintCompiler>(tokens_.get());
    proto_.set_text("hello");
    proto_.mutable_sampling()->set_temperature(0);
    proto_.set_max_tokens(8);
  }

  absl::Status Create() {
    sink_ = std::make_shared<RecordingSink>();
    absl::StatusOr<std::shared_ptr<Request>> request =
        Request::Create(proto_, tokenizer_.get(), limits_, /*fallback_seed=*/5, deadline_, &clock_, sink_, constraints_.get());
    if (request.ok()) request_ = *std::move(request);
    return request.status();
  }
  // A row whose best token is `best` with logit 2, all others 0; as the worker sends it for `wanted`.
  static LogitsResult Row(int32_t best, const LogitsRequest& wanted) {
    LogitsResult row{.log_sum_exp = static_cast<float>(std::log(kVocab - 1 + std::exp(2.0)))};
    row.target_logit = wanted.target == best ? 2.f : 0.f;
    if (wanted.top_n >= kVocab) {
      row.logits.assign(kVocab, 0.f);
      row.logits[best] = 2;
      return row;
    }
    for (int32_t i = 0; i < wanted.top_n; ++i) {
      row.ids.push_back(i == 0 ? best : i - 1 < best ? i - 1 : i);
      row.logits.push_back(i == 0 ? 2.f : 0.f);
    }
    return row;
  }
  // Computes the rows from `first` to the last known token, with `best` as every row's best; whether it finished.
  bool Step(int64_t first, int32_t best) {
    std::vector<LogitsResult> logits;
    const int64_t end = static_cast<int64_t>(request_->tokens().size());
    for (int64_t position = first; position < end; ++position) {
      if (const auto wanted = request_->LogitsAt(position)) logits.push_back(Row(best, *wanted));
    }
    v1::ExpertCounters experts;
    experts.set_activated(10);
    return request_->OnRows(first, end - first, logits, experts);
  }
  // Prompt, then the tokens of `text` and ids; whether the last one finished it.
  bool Generate(const std::vector<int32_t>& ids) {
    bool finished = false;
    int64_t next = 0;
    for (const int32_t id : ids) {
      const int64_t end = static_cast<int64_t>(request_->tokens().size());
      finished = Step(next, id);
      next = end;
      if (finished) break;
    }
    return finished;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TokenizerTokens> tokens_;
  std::unique_ptr<constraint::ConstraintCompiler> constraints_;
  RequestLimits limits_ = {.context_tokens = 32, .share_tokens = 16, .vocab_size = kVocab, .max_token_bytes = 10};
  FakeClock clock_;
  absl::Time deadline_ = absl::InfiniteFuture();
  v1::GenerateRequest proto_;
  std::shared_ptr<RecordingSink> sink_;
  std::shared_ptr<Request> request_;
};

TEST_F(RequestTest, TokenizesWithBosAsTheModelSaysUnlessTold) {
  ASSERT_OK(Create());
  EXPECT_THAT(request_->tokens(), ElementsAre(kBos, 256, 'l', 'l', 'o'));
  EXPECT_FALSE(request_->forgets_experts());
  proto_.set_add_bos(false);
  ASSERT_OK(Create());
  EXPECT_THAT(request_->tokens(), ElementsAre(256, 'l', 'l', 'o'));
}

TEST_F(RequestTest, ParsesSpecialTokensUnlessTold) {
  proto_.set_text("a<|return|>");
  ASSERT_OK(Create());
  EXPECT_THAT(request_->tokens(), ElementsAre(kBos, 'a', kEnd));
  proto_.set_parse_special(false);
  ASSERT_OK(Create());
  EXPECT_EQ(request_->prompt_tokens(), 12);
}

TEST_F(RequestTest, TakesTokensAsTheyAre) {
  proto_.mutable_tokens()->add_ids('x');
  proto_.mutable_tokens()->add_ids(kEnd);
  ASSERT_OK(Create());
  EXPECT_THAT(request_->tokens(), ElementsAre('x', kEnd));
}

TEST_F(RequestTest, StreamsTokensAndTextAndFinishesAtMaxTokens) {
  proto_.set_max_tokens(3);
  ASSERT_OK(Create());
  EXPECT_EQ(request_->reserve_tokens(), 8);
  EXPECT_TRUE(Generate({'w', 'o', 'w'}));
  EXPECT_EQ(sink_->responses.size(), 3u);
  EXPECT_THAT(sink_->ids(), ElementsAre('w', 'o', 'w'));
  EXPECT_EQ(sink_->text(), "wow");
  EXPECT_TRUE(sink_->closed);
  EXPECT_OK(sink_->status);
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::LENGTH);
  EXPECT_EQ(sink_->finish().prompt_tokens(), 5u);
  EXPECT_EQ(sink_->finish().generated_tokens(), 3u);
  EXPECT_EQ(sink_->finish().experts().activated(), 30u) << "of the steps it was part of";
}

TEST_F(RequestTest, TokensThatFollowEachOtherQuicklyAreSentTogether) {
  limits_.between_messages = absl::Milliseconds(2);
  ASSERT_OK(Create());
  Generate({'a'});
  ASSERT_EQ(sink_->responses.size(), 1) << "the first token does not wait";
  EXPECT_EQ(request_->unsent_until(), absl::InfiniteFuture());
  clock_.Advance(absl::Milliseconds(1));
  Step(5, 'b');
  EXPECT_EQ(sink_->responses.size(), 1);
  clock_.Advance(absl::Milliseconds(1));
  Step(6, 'c');
  ASSERT_EQ(sink_->responses.size(), 2);
  EXPECT_EQ(sink_->responses[1].text(), "bc");
  EXPECT_THAT(sink_->responses[1].token_ids(), ElementsAre('b', 'c'));
  EXPECT_EQ(sink_->responses[1].usage().generated_tokens(), 3);
}

TEST_F(RequestTest, ATokenThatNoneFollowsIsSentByItself) {
  limits_.between_messages = absl::Milliseconds(2);
  ASSERT_OK(Create());
  Generate({'a', 'b'});
  EXPECT_EQ(sink_->responses.size(), 1);
  EXPECT_EQ(request_->unsent_until(), clock_.Now() + absl::Milliseconds(4));
  request_->SendUnsent();
  ASSERT_EQ(sink_->responses.size(), 2);
  EXPECT_EQ(sink_->responses[1].text(), "b");
  EXPECT_EQ(request_->unsent_until(), absl::InfiniteFuture());
}

TEST_F(RequestTest, TheEndWaitsForNothing) {
  limits_.between_messages = absl::Milliseconds(2);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', 'b', kEnd}));
  ASSERT_EQ(sink_->responses.size(), 2);
  EXPECT_EQ(sink_->text(), "ab");
  EXPECT_THAT(sink_->ids(), ElementsAre('a', 'b', kEnd));
  ASSERT_OK(Create());
  Generate({'a', 'b'});
  request_->OnFailed(Unavailable("gone"));
  EXPECT_EQ(sink_->text(), "ab") << "an error comes behind the tokens that waited";
}

TEST_F(RequestTest, NeverSplitsACharacter) {
  proto_.set_max_tokens(4);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({0xC3, 0xA9, 0xE2, 0x82}));
  EXPECT_EQ(sink_->responses[0].text(), "");
  EXPECT_EQ(sink_->responses[1].text(), "\xC3\xA9");
  EXPECT_EQ(sink_->responses[3].text(), "\xEF\xBF\xBD") << "the end of the output ends a character that never came";
}

TEST_F(RequestTest, StopsAtAnEndToken) {
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', kEnd}));
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::STOP);
  EXPECT_THAT(sink_->ids(), ElementsAre('a', kEnd));
  EXPECT_EQ(sink_->text(), "a");
}

TEST_F(RequestTest, ShowsSpecialTokensWhenAsked) {
  proto_.set_render_special(true);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', kEnd}));
  EXPECT_EQ(sink_->text(), "a<|return|>");
}

TEST_F(RequestTest, GoesOnBehindAnEndTokenWithIgnoreEos) {
  proto_.set_ignore_eos(true);
  proto_.set_max_tokens(3);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', kEnd, 'b'}));
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::LENGTH);
  EXPECT_EQ(sink_->text(), "ab");
}

TEST_F(RequestTest, DoesNotEndBeforeMinTokens) {
  proto_.set_min_tokens(3);
  proto_.add_stop("ab");
  proto_.add_stop_token_ids('!');
  ASSERT_OK(Create());
  EXPECT_EQ(request_->LogitsAt(4)->top_n, kVocab) << "the end tokens are masked";
  // Of the rest all logits are 0, so that the lowest id follows in place of an end token.
  EXPECT_FALSE(Generate({kEnd}));
  EXPECT_FALSE(Step(5, 'a'));
  EXPECT_FALSE(Step(6, 'b')) << "a stop string before it";
  EXPECT_EQ(request_->LogitsAt(7)->top_n, 1);
  EXPECT_TRUE(Step(7, '!'));
  EXPECT_EQ(sink_->text(), std::string("\0ab", 3));
  EXPECT_EQ(sink_->finish().generated_tokens(), 4u);
}

TEST_F(RequestTest, ReadsTheSamplersOfLlamaCpp) {
  v1::Dry& dry = *proto_.mutable_sampling()->mutable_dry();
  dry.set_multiplier(5);
  dry.set_allowed_length(1);
  ASSERT_OK(Create());
  EXPECT_EQ(request_->LogitsAt(4)->top_n, kVocab);
  EXPECT_FALSE(Generate({'a', 'b', 'a', 'b'}));
  EXPECT_NE(sink_->text(), "abab") << "b would repeat what followed a";
  dry.add_sequence_breakers("a");
  ASSERT_OK(Create());
  EXPECT_FALSE(Generate({'a', 'b', 'a', 'b'}));
  EXPECT_EQ(sink_->text(), "abab") << "no repetition goes over a";
}

TEST_F(RequestTest, StopsAtAStopTokenEvenWithIgnoreEos) {
  proto_.set_ignore_eos(true);
  proto_.add_stop_token_ids('!');
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', '!'}));
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::STOP);
  EXPECT_EQ(sink_->text(), "a");
}

TEST_F(RequestTest, ASpecialTokenAsAStopStringEndsItWhetherOrNotItIsRendered) {
  for (const bool rendered : {false, true}) {
    proto_.clear_stop();
    proto_.add_stop("<|bos|>");
    proto_.set_ignore_eos(true);
    proto_.set_render_special(rendered);
    ASSERT_OK(Create());
    EXPECT_TRUE(Generate({'a', kEnd, kBos})) << rendered;
    EXPECT_EQ(sink_->finish().reason(), v1::Finish::STOP);
    EXPECT_EQ(sink_->text(), rendered ? "a<|return|>" : "a") << "a stop string is not part of the text";
  }
}

TEST_F(RequestTest, ReplacesBadUtf8InAPromptAndRefusesItInAStopString) {
  proto_.set_text("h\xe9llo");
  EXPECT_OK(Create());
  v1::GenerateRequest read;
  ASSERT_TRUE(read.ParseFromString(proto_.SerializeAsString())) << "they pass over the wire";
  EXPECT_EQ(read.text(), "h\xe9llo");
  proto_.add_stop("\xff");
  EXPECT_THAT(Create(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("stop[0] is not UTF-8")));
}

TEST_F(RequestTest, StopsAtAStringAcrossTokensAndDoesNotShowIt) {
  proto_.add_stop("END");
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', 'E', 'N', 'D', 'x'}));
  EXPECT_EQ(sink_->text(), "a");
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::STOP);
  EXPECT_EQ(sink_->finish().generated_tokens(), 4u);
}

TEST_F(RequestTest, ShowsTheBeginningOfAStopStringThatDidNotCome) {
  proto_.add_stop("END");
  proto_.set_max_tokens(3);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', 'E', 'N'}));
  EXPECT_EQ(sink_->responses[1].text(), "");
  EXPECT_EQ(sink_->text(), "aEN");
}

TEST_F(RequestTest, GivesLogprobsOfTheChosenAndTheBest) {
  proto_.set_logprobs(2);
  proto_.set_max_tokens(1);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'q'}));
  ASSERT_EQ(sink_->responses[0].logprobs_size(), 1);
  const v1::PositionLogprobs& logprobs = sink_->responses[0].logprobs(0);
  const double want = 2 - std::log(kVocab - 1 + std::exp(2.0));
  EXPECT_EQ(logprobs.id(), static_cast<uint32_t>('q'));
  EXPECT_NEAR(logprobs.logprob(), want, 1e-5);
  ASSERT_EQ(logprobs.top_size(), 2);
  EXPECT_EQ(logprobs.top(0).id(), static_cast<uint32_t>('q'));
  EXPECT_NEAR(logprobs.top(1).logprob(), want - 2, 1e-5);
}

TEST_F(RequestTest, ScoresAPromptChunkByChunk) {
  proto_.set_max_tokens(0);
  proto_.set_prompt_logprobs(1);
  ASSERT_OK(Create());
  EXPECT_FALSE(request_->may_reuse_prefix());
  EXPECT_FALSE(request_->LogitsAt(4)) << "nothing is wanted of the last row";
  std::vector<LogitsResult> logits;
  for (int64_t position = 0; position < 3; ++position) logits.push_back(Row('l', *request_->LogitsAt(position)));
  EXPECT_FALSE(request_->OnRows(0, 3, logits, {}));
  ASSERT_EQ(sink_->responses.size(), 1u);
  EXPECT_EQ(sink_->responses[0].prompt_logprobs_size(), 3);
  logits = {Row('l', *request_->LogitsAt(3))};
  EXPECT_TRUE(request_->OnRows(3, 2, logits, {}));
  ASSERT_EQ(sink_->responses.size(), 2u);
  const v1::PositionLogprobs& first = sink_->responses[0].prompt_logprobs(0);
  EXPECT_EQ(first.id(), 256u) << "of prompt token 1";
  const double lse = std::log(kVocab - 1 + std::exp(2.0));
  EXPECT_NEAR(first.logprob(), -lse, 1e-5);
  EXPECT_NEAR(sink_->responses[0].prompt_logprobs(1).logprob(), 2 - lse, 1e-5);
  EXPECT_EQ(first.top(0).id(), static_cast<uint32_t>('l'));
  EXPECT_EQ(sink_->responses[1].prompt_logprobs(0).id(), static_cast<uint32_t>('o'));
  EXPECT_EQ(sink_->finish().generated_tokens(), 0u);
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::LENGTH);
}

TEST_F(RequestTest, RowsComputedAgainSampleNothingAndAreNotSentTwice) {
  proto_.set_prompt_logprobs(0);
  proto_.set_prompt_progress(true);
  proto_.set_max_tokens(3);
  ASSERT_OK(Create());
  EXPECT_FALSE(Generate({'a', 'b'}));
  EXPECT_TRUE(request_->resumes());
  request_->OnResumed();
  EXPECT_TRUE(request_->may_reuse_prefix()) << "the prompt's log-probabilities are out";
  for (int64_t position = 0; position < 6; ++position) EXPECT_FALSE(request_->LogitsAt(position)) << position;
  EXPECT_FALSE(request_->OnRows(0, 4, {}, {}));
  EXPECT_TRUE(Step(4, 'c'));
  int progress = 0;
  for (const v1::GenerateResponse& response : sink_->responses) progress += response.has_prompt_progress();
  EXPECT_EQ(progress, 1) << "of the prompt's one step, once";
  EXPECT_THAT(sink_->ids(), ElementsAre('a', 'b', 'c'));
  EXPECT_EQ(sink_->text(), "abc");
  int prompt_logprobs = 0;
  for (const v1::GenerateResponse& response : sink_->responses) prompt_logprobs += response.prompt_logprobs_size();
  EXPECT_EQ(prompt_logprobs, 4);
  EXPECT_EQ(sink_->finish().resumed(), 1u);
  proto_.set_resume(false);
  ASSERT_OK(Create());
  EXPECT_FALSE(request_->resumes());
}

TEST_F(RequestTest, MaxTokensZeroComputesThePromptOnly) {
  proto_.set_max_tokens(0);
  ASSERT_OK(Create());
  for (int64_t position = 0; position < 5; ++position) EXPECT_FALSE(request_->LogitsAt(position));
  EXPECT_TRUE(Step(0, 'x'));
  EXPECT_THAT(sink_->ids(), ElementsAre());
  EXPECT_OK(sink_->status);
}

TEST_F(RequestTest, AsksForFewLogitsWhenFewDecide) {
  ASSERT_OK(Create());
  EXPECT_LT(request_->LogitsAt(4)->top_n, 10) << "greedy";
  proto_.mutable_sampling()->set_frequency_penalty(0.5);
  ASSERT_OK(Create());
  EXPECT_EQ(request_->LogitsAt(4)->top_n, kVocab) << "penalties may lift any token";
  EXPECT_TRUE(Generate({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}));
}

TEST_F(RequestTest, ForgetsExpertsWhenAsked) {
  proto_.set_forget_experts(true);
  ASSERT_OK(Create());
  EXPECT_TRUE(request_->forgets_experts());
}

TEST_F(RequestTest, MeasuresQueuePrefillAndDecode) {
  proto_.set_max_tokens(2);
  ASSERT_OK(Create());
  clock_.Advance(absl::Seconds(2));
  request_->OnAdmitted(3);
  clock_.Advance(absl::Seconds(3));
  Step(3, 'a');
  clock_.Advance(absl::Seconds(4));
  Step(5, 'b');
  EXPECT_EQ(sink_->finish().queue_seconds(), 2);
  EXPECT_EQ(sink_->finish().prefill_seconds(), 3);
  EXPECT_EQ(sink_->finish().decode_seconds(), 4);
  EXPECT_EQ(sink_->finish().cached_prompt_tokens(), 3u);
}

TEST_F(RequestTest, TheSameSeedGivesTheSameTokens) {
  proto_.mutable_sampling()->set_temperature(5);
  std::vector<std::vector<uint32_t>> outputs;
  for (const uint64_t seed : {7, 7, 8}) {
    proto_.mutable_sampling()->set_seed(seed);
    ASSERT_OK(Create());
    Generate({'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a'});
    EXPECT_EQ(sink_->finish().seed(), seed);
    outputs.push_back(sink_->ids());
  }
  EXPECT_EQ(outputs[0], outputs[1]);
  EXPECT_NE(outputs[0], outputs[2]);
}

TEST_F(RequestTest, ReportsTheSeedItDrewItself) {
  proto_.set_max_tokens(1);
  ASSERT_OK(Create());
  Generate({'a'});
  EXPECT_EQ(sink_->finish().seed(), 5u);
}

TEST_F(RequestTest, WithoutMaxTokensFillsItsShareOrTheContext) {
  proto_.clear_max_tokens();
  ASSERT_OK(Create());
  EXPECT_EQ(request_->reserve_tokens(), 16);
  proto_.set_text(std::string(20, 'x'));
  ASSERT_OK(Create());
  EXPECT_EQ(request_->reserve_tokens(), 32);
}

TEST_F(RequestTest, NeverReservesMoreThanTheContext) {
  proto_.set_max_tokens(4'000'000'000);
  ASSERT_OK(Create());
  EXPECT_EQ(request_->reserve_tokens(), 32);
}

TEST_F(RequestTest, AWorkersNonsenseEndsThisRequestOnly) {
  ASSERT_OK(Create());
  std::vector<LogitsResult> logits = {Row('a', *request_->LogitsAt(4))};
  logits[0].log_sum_exp = std::nanf("");
  logits[0].logits.assign(logits[0].logits.size(), std::nanf(""));
  EXPECT_TRUE(request_->OnRows(0, 5, logits, {}));
  EXPECT_THAT(sink_->status, testing::Not(IsOk()));
}

struct BadRequest {
  const char* field;
  std::function<void(v1::GenerateRequest&)> set;
};
class RequestRefusal : public RequestTest, public ::testing::WithParamInterface<BadRequest> {};
TEST_P(RequestRefusal, NamesTheField) {
  GetParam().set(proto_);
  EXPECT_THAT(Create(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().field)));
}
INSTANTIATE_TEST_SUITE_P(
    All, RequestRefusal,
    ::testing::Values(
        BadRequest{"prompt", [](auto& r) { r.clear_prompt(); }}, BadRequest{"prompt", [](auto& r) { r.mutable_tokens(); }},
        BadRequest{"tokens.ids[1]", [](auto& r) { r.mutable_tokens()->add_ids(1), r.mutable_tokens()->add_ids(259); }},
        BadRequest{"tokens.ids[0]", [](auto& r) { r.mutable_tokens()->add_ids(4294967295u); }},
        BadRequest{"prompt", [](auto& r) { r.set_text(std::string(40, 'x')); }},
        BadRequest{"text", [](auto& r) { r.set_text(std::string(400, 'x')); }},
        BadRequest{"no room", [](auto& r) { r.set_text(std::string(31, 'x')), r.set_max_tokens(1); }},
        BadRequest{"temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-1); }},
        BadRequest{"temperature", [](auto& r) { r.mutable_sampling()->set_temperature(std::nanf("")); }},
        BadRequest{"top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
        BadRequest{"min_p", [](auto& r) { r.mutable_sampling()->set_min_p(2); }},
        BadRequest{"repetition_penalty", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
        BadRequest{"repetition_penalty", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(11); }},
        BadRequest{"frequency_penalty", [](auto& r) { r.mutable_sampling()->set_frequency_penalty(3); }},
        BadRequest{"presence_penalty", [](auto& r) { r.mutable_sampling()->set_presence_penalty(-3); }},
        BadRequest{"logit_bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[259] = 1; }},
        BadRequest{"logit_bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[3] = 101; }},
        BadRequest{"logprobs", [](auto& r) { r.set_logprobs(21); }},
        BadRequest{"prompt_logprobs", [](auto& r) { r.set_prompt_logprobs(21); }},
        BadRequest{"stop_token_ids", [](auto& r) { r.add_stop_token_ids(259); }},
        BadRequest{"stop", [](auto& r) { r.add_stop(""); }}, BadRequest{"min_tokens", [](auto& r) { r.set_min_tokens(9); }},
        BadRequest{"min_tokens", [](auto& r) { r.set_min_tokens(1), r.mutable_constraint()->set_regex("a"); }},
        BadRequest{"typical_p", [](auto& r) { r.mutable_sampling()->set_typical_p(0); }},
        BadRequest{"top_n_sigma", [](auto& r) { r.mutable_sampling()->set_top_n_sigma(-1); }},
        BadRequest{"xtc_probability", [](auto& r) { r.mutable_sampling()->set_xtc_probability(2); }},
        BadRequest{"dry.multiplier", [](auto& r) { r.mutable_sampling()->mutable_dry()->set_multiplier(-1); }},
        BadRequest{"dry.allowed_length", [](auto& r) { r.mutable_sampling()->mutable_dry()->set_allowed_length(4294967295u); }},
        BadRequest{"dry.sequence_breakers", [](auto& r) { r.mutable_sampling()->mutable_dry()->add_sequence_breakers(""); }},
        BadRequest{"stop[0]", [](auto& r) { r.add_stop(std::string(257, 'x')); }}, BadRequest{"stop", [](auto& r) {
                                                                                                for (int i = 0; i < 17; ++i)
                                                                                                  r.add_stop("x");
                                                                                              }}));

TEST_F(RequestTest, SaysHowFarThePromptIsWhenAsked) {
  proto_.set_prompt_progress(true);
  proto_.set_max_tokens(1);
  ASSERT_OK(Create());
  request_->OnAdmitted(/*cached_tokens=*/1);
  std::vector<LogitsResult> none;
  clock_.Advance(absl::Seconds(2));
  EXPECT_FALSE(request_->OnRows(1, 2, none, {}));
  ASSERT_EQ(sink_->responses.size(), 1u);
  const v1::PromptProgress& first = sink_->responses[0].prompt_progress();
  EXPECT_EQ(first.total(), 5u);
  EXPECT_EQ(first.cached(), 1u);
  EXPECT_EQ(first.processed(), 3u);
  EXPECT_EQ(first.seconds(), 2);
  EXPECT_TRUE(Step(3, 'x'));
  EXPECT_EQ(sink_->responses.back().prompt_progress().processed(), 5u);
}

TEST_F(RequestTest, SaysWhatEndedTheOutput) {
  proto_.add_stop("bc");
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', 'b', 'c'}));
  EXPECT_EQ(sink_->finish().matched_stop(), "bc");
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a', kEnd}));
  EXPECT_EQ(sink_->finish().matched_token_id(), static_cast<uint32_t>(kEnd));
  proto_.set_max_tokens(1);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'a'}));
  EXPECT_EQ(sink_->finish().matched_case(), v1::Finish::MATCHED_NOT_SET);
}

TEST_F(RequestTest, AConstraintOutweighsTheBestLogit) {
  proto_.mutable_constraint()->set_regex("a[0-9]b");
  ASSERT_OK(Create());
  EXPECT_EQ(request_->LogitsAt(request_->prompt_tokens() - 1)->top_n, kVocab);
  EXPECT_TRUE(Generate({'z', '7', 'z'}));  // what does not fit is not drawn
  EXPECT_EQ(sink_->text(), "a7b");
  EXPECT_EQ(sink_->finish().reason(), v1::Finish::STOP);
  ASSERT_OK(sink_->status);
}

TEST_F(RequestTest, AnEndTokenComesWhenTheOutputIsComplete) {
  proto_.mutable_constraint()->set_regex("ab*");
  proto_.set_ignore_eos(true);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({kEnd, 'b', kEnd}));
  EXPECT_EQ(sink_->text(), "ab");
  EXPECT_THAT(sink_->ids(), ElementsAre('a', 'b', kEnd));
}

TEST_F(RequestTest, AConstraintMayHaveAnEndTokenWithinTheOutput) {
  v1::Constraint::Parts& parts = *proto_.mutable_constraint()->mutable_sequence();
  parts.add_parts()->set_literal("a");
  parts.add_parts()->set_token(kEnd);
  parts.add_parts()->mutable_choice()->add_texts("b");
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'z', 'z', 'z'}));
  EXPECT_THAT(sink_->ids(), ElementsAre('a', kEnd, 'b'));
  EXPECT_EQ(sink_->text(), "ab");
}

TEST_F(RequestTest, AConstraintMayBeginBehindTokens) {
  proto_.mutable_constraint()->mutable_choice()->add_texts("yes");
  proto_.mutable_constraint()->add_start_after('!');
  proto_.mutable_constraint()->add_start_after(kBos);
  ASSERT_OK(Create());
  EXPECT_TRUE(Generate({'x', '!', kBos, 'x', 'x', 'x'}));
  EXPECT_EQ(sink_->text(), "x!yes");
}

TEST_F(RequestTest, AConstraintThatIsNotSupportedIsRefusedAtOnce) {
  const auto refused = [&](const char* message) {
    EXPECT_THAT(Create(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  proto_.mutable_constraint();
  refused("constraint has no kind");
  proto_.mutable_constraint()->set_json_schema(R"({"properties":{"a":{"multipleOf":2}}})");
  refused("constraint: json_schema: #/properties/a/multipleOf: the keyword multipleOf is not supported");
  proto_.mutable_constraint()->set_regex("(?=a)");
  refused("look-around");
  proto_.mutable_constraint()->set_gbnf("root ::= x");
  refused("gbnf: the rule x is used but not defined");
  proto_.mutable_constraint()->mutable_choice();
  refused("choice: it has 0 texts");
  proto_.mutable_constraint()->set_token(kVocab);
  refused("token 259 is none of the vocabulary");
  v1::Constraint nested;
  nested.set_literal("a");
  for (int i = 0; i < 20; ++i) {
    v1::Constraint outer;
    *outer.mutable_sequence()->add_parts() = nested;
    nested = outer;
  }
  *proto_.mutable_constraint() = nested;
  refused("nested deeper than 16");
  proto_.mutable_constraint()->set_json_object(false);
  refused("json_object is false");
  proto_.mutable_constraint()->set_json_object(true);
  proto_.mutable_constraint()->add_start_after(kVocab);
  refused("start_after has 259");
}

}  // namespace
}  // namespace ferry
