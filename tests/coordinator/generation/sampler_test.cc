#include "coordinator/generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/coordinator/cpu_time.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::AllOf;
using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kNanLogit = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfiniteLogit = std::numeric_limits<float>::infinity();

// Samples with no filter: temperature 1, everything else off.
SamplingParams Plain() { return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 1}; }
SamplingParams Greedy() { return {.temperature = 0}; }

Sampler Make(const SamplingParams& params, int32_t vocab_size, const std::vector<int32_t>& prompt = {}) {
  absl::StatusOr<Sampler> sampler = Sampler::Create(params, vocab_size, prompt, /*fallback_seed=*/1);
  EXPECT_OK(sampler);
  return *std::move(sampler);
}

int32_t TokenOf(const Sampler& sampler, const std::vector<float>& logits) {
  const absl::StatusOr<SampledToken> token = sampler.Sample(LogitsRow::Whole(logits));
  EXPECT_OK(token);
  return token->id;
}

// How often each token is drawn in `draws` steps from the same logits.
std::vector<int> Draws(Sampler sampler, const std::vector<float>& logits, int draws) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) {
    ++counts[TokenOf(sampler, logits)];
    sampler.Accept(0);
  }
  return counts;
}
std::set<int32_t> Drawn(const SamplingParams& params, const std::vector<float>& logits) {
  const std::vector<int> counts = Draws(Make(params, logits.size()), logits, 3000);
  std::set<int32_t> drawn;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] > 0) drawn.insert(static_cast<int32_t>(i));
  }
  return drawn;
}

std::vector<float> RandomLogits(int n, uint32_t seed, float spread = 3) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// What a worker would send.
struct Best {
  std::vector<int32_t> ids;
  std::vector<float> logits;
  double log_sum_exp;
  LogitsRow row() const { return LogitsRow::Best(ids, logits, log_sum_exp); }
};
Best BestOf(const std::vector<float>& logits, int32_t count) {
  Best best{.ids = {}, .logits = {}, .log_sum_exp = LogSumExp(logits)};
  const absl::StatusOr<std::vector<Candidate>> candidates = BestCandidates(logits, count);
  EXPECT_OK(candidates);
  for (const Candidate& candidate : *candidates) {
    best.ids.push_back(candidate.id);
    best.logits.push_back(candidate.logit);
  }
  return best;
}

TEST(Sampler, TakesTheBestTokenAtTemperatureZeroAndOfEqualOnesTheLowerId) {
  EXPECT_EQ(TokenOf(Make(Greedy(), 4), {1, 3, 2, 3}), 1);
}

TEST(Sampler, DrawsInProportionToTheSoftmax) {
  const std::vector<int> counts = Draws(Make(Plain(), 3), {std::log(1.f), std::log(2.f), std::log(5.f)}, 80'000);
  // Four standard deviations of a binomial count are under 600.
  EXPECT_NEAR(counts[0], 10'000, 600);
  EXPECT_NEAR(counts[1], 20'000, 600);
  EXPECT_NEAR(counts[2], 50'000, 600);
}

TEST(Sampler, DividesLogitsByTheTemperature) {
  SamplingParams params = Plain();
  params.temperature = 2;
  const std::vector<int> counts = Draws(Make(params, 2), {0, std::log(16.f)}, 50'000);
  EXPECT_NEAR(counts[1], 40'000, 500);  // weights 1 and 4
}

TEST(Sampler, StaysDefinedAtExtremeTemperaturesAndLogits) {
  SamplingParams params = Plain();
  params.temperature = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(Drawn(params, {3e38f, -3e38f, 1}), std::set<int32_t>({0}));
}

TEST(Sampler, KeepsTheTopKWithTiesToTheLowerId) {
  SamplingParams params = Plain();
  params.top_k = 2;
  EXPECT_EQ(Drawn(params, {1, 2, 1, 1}), std::set<int32_t>({0, 1}));
}

TEST(Sampler, TakesTopKBeyondTheVocabularyAsAll) {
  SamplingParams params = Plain();
  params.top_k = 1000;
  EXPECT_EQ(Drawn(params, {1, 1, 1}), std::set<int32_t>({0, 1, 2}));
}

TEST(Sampler, KeepsTheFewestTokensThatReachTopP) {
  SamplingParams params = Plain();
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  params.top_p = 0.39f;
  EXPECT_EQ(Drawn(params, logits), std::set<int32_t>({1}));
  params.top_p = 0.5f;
  EXPECT_EQ(Drawn(params, logits), std::set<int32_t>({1, 3}));
  params.top_p = 0.85f;
  EXPECT_EQ(Drawn(params, logits), std::set<int32_t>({1, 2, 3}));
}

TEST(Sampler, AppliesTopPToWhatTopKLeft) {
  SamplingParams params = Plain();
  params.top_k = 2;
  params.top_p = 0.6f;  // of 0.4 and 0.3 the first is 0.57: not enough alone
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  EXPECT_EQ(Drawn(params, logits), std::set<int32_t>({1, 3}));
  params.top_p = 0.55f;
  EXPECT_EQ(Drawn(params, logits), std::set<int32_t>({1}));
}

TEST(Sampler, KeepsTokensWithinMinPOfTheBest) {
  SamplingParams params = Plain();
  params.min_p = 0.45f;
  EXPECT_EQ(Drawn(params, {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)}), std::set<int32_t>({1, 2, 3}));
  params.min_p = 1;
  EXPECT_EQ(Drawn(params, {0, 2, 2}), std::set<int32_t>({1, 2}));
}

TEST(Sampler, CutsALargeVocabularyToTopPAsSortingAllOfItWould) {
  const std::vector<float> logits = RandomLogits(5000, 4, 0.5f);  // flat: thousands of tokens are needed
  SamplingParams params = Plain();
  params.top_p = 0.7f;
  std::vector<double> weights;
  for (const float logit : logits) weights.push_back(std::exp(logit));
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double total = 0, sum = 0;
  for (const double weight : weights) total += weight;
  std::set<int32_t> nucleus;
  for (const int32_t id : order) {
    nucleus.insert(id);
    if ((sum += weights[id]) >= 0.7f * total) break;
  }
  for (const int32_t id : Drawn(params, logits)) EXPECT_TRUE(nucleus.contains(id)) << id;
}

TEST(Sampler, PenalisesRepetitionInPromptAndOutput) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2;
  Sampler sampler = Make(params, 4, /*prompt=*/{0, 3});
  // 4 becomes 2; -1 becomes -2.
  EXPECT_EQ(TokenOf(sampler, {4, 3, 2, 0}), 1);
  EXPECT_EQ(TokenOf(sampler, {-1, -1.5f, -3, -1}), 1);
  sampler.Accept(1);
  EXPECT_EQ(TokenOf(sampler, {4, 3, 2.5f, 0}), 2);
}

TEST(Sampler, PenalisesFrequencyByCountAndPresenceOnceInTheOutputOnly) {
  SamplingParams params = Greedy();
  params.frequency_penalty = 1;
  Sampler frequency = Make(params, 3, /*prompt=*/{0, 0, 0});
  EXPECT_EQ(TokenOf(frequency, {2.5f, 1, 0}), 0);
  frequency.Accept(0);
  EXPECT_EQ(TokenOf(frequency, {2.5f, 1, 0}), 0);
  frequency.Accept(0);
  EXPECT_EQ(TokenOf(frequency, {2.5f, 1, 0}), 1);
  params = Greedy();
  params.presence_penalty = 1;
  Sampler presence = Make(params, 3);
  presence.Accept(0);
  presence.Accept(0);
  EXPECT_EQ(TokenOf(presence, {2.5f, 1, 0}), 0);
  EXPECT_EQ(TokenOf(presence, {1.5f, 1, 0}), 1);
}

TEST(Sampler, AddsBiases) {
  SamplingParams params = Greedy();
  params.logit_bias = {{0, -100}, {2, 0.6f}};
  EXPECT_EQ(TokenOf(Make(params, 3), {9, 1, 0.5f}), 2);
}

TEST(Sampler, GivesTheSameTokensForTheSameSeedAndOthersForAnother) {
  const std::vector<float> logits = RandomLogits(1000, 1, 0.1f);
  const auto tokens = [&](std::optional<uint64_t> seed, uint64_t fallback) {
    SamplingParams params = Plain();
    params.seed = seed;
    absl::StatusOr<Sampler> sampler = Sampler::Create(params, 1000, {}, fallback);
    EXPECT_OK(sampler);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) {
      ids.push_back(TokenOf(*sampler, logits));
      sampler->Accept(ids.back());
    }
    return ids;
  };
  EXPECT_EQ(tokens(7, 1), tokens(7, 2));
  EXPECT_EQ(tokens(std::nullopt, 7), tokens(7, 2));
  EXPECT_NE(tokens(7, 1), tokens(8, 1));
}

// Fixed for good: the tokens of a seed are a promise to users.
TEST(Sampler, GivesTheTokensThatThisSeedAlwaysGave) {
  Sampler sampler = Make(Plain(), 100);
  std::vector<int32_t> ids;
  for (int i = 0; i < 6; ++i) {
    ids.push_back(TokenOf(sampler, std::vector<float>(100, 0.f)));
    sampler.Accept(ids.back());
  }
  EXPECT_THAT(ids, ElementsAre(36, 94, 4, 77, 21, 77));
}

TEST(Sampler, AnswersTheSameWhenAskedAgainBeforeAccept) {
  Sampler sampler = Make(Plain(), 1000);
  const std::vector<float> logits = RandomLogits(1000, 2, 0.1f);
  EXPECT_EQ(TokenOf(sampler, logits), TokenOf(sampler, logits));
}

TEST(Sampler, ChoosesFromTheBestCandidatesWhatItChoosesFromTheWholeRow) {
  std::vector<SamplingParams> cases(6);
  cases[1] = {.temperature = 1.5f, .top_k = 5, .top_p = 0.9f, .min_p = 0, .logprobs = 3};
  cases[2] = {.temperature = 0, .logprobs = 10};
  cases[3] = {.temperature = 1, .top_k = 1};
  cases[4] = {.temperature = 1, .top_k = 0, .logprobs = 2};
  cases[5] = {.temperature = 1, .repetition_penalty = 1.3f, .logprobs = 2};
  for (size_t i = 0; i < cases.size(); ++i) {
    Sampler sampler = Make(cases[i], 3000, {5, 6, 7});
    for (uint32_t step = 0; step < 50; ++step) {
      std::vector<float> logits = RandomLogits(3000, step);
      for (float& logit : logits) logit = std::round(logit * 4) / 4;  // ties
      const Best best = BestOf(logits, sampler.candidates_needed());
      ASSERT_OK_AND_ASSIGN(const SampledToken from_whole, sampler.Sample(LogitsRow::Whole(logits)));
      ASSERT_OK_AND_ASSIGN(const SampledToken from_best, sampler.Sample(best.row()));
      ASSERT_EQ(from_best.id, from_whole.id) << "case " << i;
      ASSERT_EQ(from_best.logprob, from_whole.logprob);
      ASSERT_EQ(from_best.best.size(), from_whole.best.size());
      for (size_t j = 0; j < from_best.best.size(); ++j) {
        EXPECT_EQ(from_best.best[j].id, from_whole.best[j].id);
        EXPECT_EQ(from_best.best[j].logprob, from_whole.best[j].logprob);
      }
      sampler.Accept(from_whole.id);
    }
  }
}

TEST(Sampler, ReportsLogProbabilitiesOfTheRawLogits) {
  SamplingParams params{.temperature = 0, .logit_bias = {{2, 50}}, .logprobs = 2};
  const std::vector<float> logits = {std::log(0.5f), std::log(0.2f), std::log(0.3f)};
  ASSERT_OK_AND_ASSIGN(const SampledToken token, Make(params, 3).Sample(LogitsRow::Whole(logits)));
  EXPECT_EQ(token.id, 2);
  EXPECT_THAT(*token.logprob, DoubleNear(std::log(0.3), 1e-6));
  ASSERT_EQ(token.best.size(), 2u);
  EXPECT_EQ(token.best[0].id, 0);
  EXPECT_THAT(token.best[0].logprob, DoubleNear(std::log(0.5), 1e-6));
  EXPECT_EQ(token.best[1].id, 2);
}

TEST(Sampler, ReportsNoLogProbabilitiesUnasked) {
  ASSERT_OK_AND_ASSIGN(const SampledToken token, Make(Greedy(), 2).Sample(LogitsRow::Whole(std::vector<float>{1, 2})));
  EXPECT_EQ(token.logprob, std::nullopt);
  EXPECT_THAT(token.best, IsEmpty());
}

TEST(Sampler, RefusesLogitsThatAreNotFinite) {
  for (const float bad : {kNanLogit, kInfiniteLogit, -kInfiniteLogit}) {
    for (const SamplingParams& params : {Greedy(), Plain(), SamplingParams{}}) {
      EXPECT_THAT(Make(params, 3).Sample(LogitsRow::Whole(std::vector<float>{1, bad, 2})),
                  StatusIs(absl::StatusCode::kInternal, HasSubstr("logit 1 of 3")));
    }
    EXPECT_THAT(Make(Greedy(), 3).Sample(LogitsRow::Best(std::vector<int32_t>{2}, std::vector<float>{bad}, 0)),
                StatusIs(absl::StatusCode::kInternal));
  }
}

TEST(Sampler, RefusesARowThatDoesNotFit) {
  const Sampler sampler = Make({.top_k = 2}, 5);
  const auto sample = [&](std::vector<int32_t> ids, std::vector<float> logits, double log_sum_exp = 1) {
    return sampler.Sample({.logits = logits, .ids = ids, .log_sum_exp = log_sum_exp});
  };
  const auto refused = [](const char* why) { return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)); };
  EXPECT_THAT(sample({}, {1, 2}), refused("2 logits, want 5"));
  EXPECT_THAT(sample({0, 1}, {1}), refused("2 ids and 1 logits"));
  EXPECT_THAT(sample({0}, {1}), refused("1 candidates, want at least 2"));
  EXPECT_THAT(sample({0, 5}, {1, 2}), refused("names token 5"));
  EXPECT_THAT(sample({-1, 4}, {1, 2}), refused("names token -1"));
  EXPECT_THAT(sample({3, 3}, {1, 2}), refused("names token 3 twice"));
  EXPECT_THAT(sample({1, 3}, {1, 2}, kNanLogit), refused("log_sum_exp"));
}

TEST(SamplingParams, RefusesValuesOutOfRangeByName) {
  const auto check = [](const SamplingParams& params, const char* field, const char* range) {
    EXPECT_THAT(CheckSamplingParams(params, 10),
                StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr(field), HasSubstr(range))));
  };
  for (const float bad : {-0.1f, 101.f, kNanLogit, kInfiniteLogit}) check({.temperature = bad}, "temperature", "[0, 100]");
  check({.top_k = -2}, "top_k", "-1");
  for (const float bad : {0.f, 1.1f, kNanLogit}) check({.top_p = bad}, "top_p", "(0, 1]");
  for (const float bad : {-0.1f, 1.1f, kNanLogit}) check({.min_p = bad}, "min_p", "[0, 1]");
  for (const float bad : {0.f, 101.f, kNanLogit}) check({.repetition_penalty = bad}, "repetition_penalty", "(0, 100]");
  for (const float bad : {-2.1f, 2.1f, kNanLogit}) {
    check({.frequency_penalty = bad}, "frequency_penalty", "[-2, 2]");
    check({.presence_penalty = bad}, "presence_penalty", "[-2, 2]");
  }
  for (const float bad : {-101.f, 101.f, kNanLogit}) check({.logit_bias = {{3, bad}}}, "logit_bias of token 3", "[-100, 100]");
  check({.logit_bias = {{10, 1.f}}}, "logit_bias names token 10", "[0, 10)");
  check({.logit_bias = {{-1, 1.f}}}, "logit_bias names token -1", "[0, 10)");
  for (const int32_t bad : {-1, 101}) check({.logprobs = bad}, "logprobs", "[0, 100]");
}

TEST(SamplingParams, AllowsTheEndsOfEveryRange) {
  EXPECT_OK(CheckSamplingParams({}, 10));
  EXPECT_OK(CheckSamplingParams({.temperature = 0,
                                 .top_k = -1,
                                 .top_p = 1,
                                 .min_p = 0,
                                 .repetition_penalty = 100,
                                 .frequency_penalty = -2,
                                 .presence_penalty = 2,
                                 .logit_bias = {{9, -100}},
                                 .logprobs = 0},
                                10));
}

TEST(Sampler, TypicalPKeepsThoseNearestToTheMeanSurprise) {
  SamplingParams params = Plain();
  const std::vector<float> logits = {std::log(0.5f), std::log(0.25f), std::log(0.125f), std::log(0.125f)};
  // Surprises are 1, 2, 3, 3 bits, and their mean is 1.75: 2 is the nearest, then 1.
  params.typical_p = 0.2f;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(1));
  params.typical_p = 0.7f;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(0, 1));
  params.temperature = 0.1f;
  params.typical_p = 0.2f;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(1)) << "the surprises before the temperature count";
  params.temperature = 1;
  params.min_p = 0.9f;
  params.typical_p = 0.2f;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(1)) << "min_p is a share of the best one that stayed";
  params.typical_p = 1;
  params.min_p = 0;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(0, 1, 2, 3));
}

TEST(Sampler, TopNSigmaKeepsWhatIsNearTheBestLogit) {
  SamplingParams params = Plain();
  params.top_n_sigma = 1;
  // Mean 2.5, standard deviation 1.5: those from 3.5 stay.
  EXPECT_THAT(Drawn(params, {1, 1, 1, 1, 4, 4, 4, 4}), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(Drawn(params, {5, 3.6f, 3.4f, 0, 0, 0}), ElementsAre(0, 1, 2)) << "deviation 2.0";
  params.temperature = 0;
  EXPECT_EQ(CandidatesNeeded(params, 1000), 1) << "the best one stays always";
}

TEST(Sampler, XtcLeavesOutAllButTheLastOfTheTopChoices) {
  SamplingParams params = Plain();
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  params.xtc_probability = 1;
  params.xtc_threshold = 0.15f;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(2, 3));
  params.temperature = 4;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(2, 3)) << "the probabilities before the temperature count";
  params.temperature = 1;
  params.xtc_threshold = 0.35f;
  EXPECT_THAT(Drawn(params, logits), ElementsAre(0, 1, 2, 3)) << "one alone stays";
  params.xtc_probability = 0.5f;
  params.xtc_threshold = 0.15f;
  const std::vector<int> counts = Draws(Make(params, 4), logits, 20'000);
  EXPECT_NEAR(counts[0], 4000, 400) << "in half of the steps";
  EXPECT_NEAR(counts[2], 2000 + 6667, 400);
}

TEST(Sampler, DryPenalizesWhatGoesOnWithARepetition) {
  SamplingParams params = Greedy();
  params.dry = DryParams{.multiplier = 1, .base = 2, .allowed_length = 2};
  const std::vector<float> logits(10, 0.0f);
  const auto penalized = [&](const std::vector<int32_t>& history, float lead) {
    std::vector<float> led = logits;
    led[5] = lead;  // the token that would repeat
    return TokenOf(Make(params, 10, history), led) != 5;
  };
  EXPECT_FALSE(penalized({3, 5, 7, 3}, 0.5f)) << "a repetition of one token is free";
  EXPECT_TRUE(penalized({2, 3, 5, 7, 2, 3}, 0.5f)) << "two: 1";
  EXPECT_FALSE(penalized({2, 3, 5, 7, 2, 3}, 1.5f));
  EXPECT_TRUE(penalized({1, 2, 3, 5, 7, 1, 2, 3}, 1.5f)) << "three: 2";
  EXPECT_FALSE(penalized({1, 2, 3, 5, 7, 1, 2, 3}, 2.5f));
  EXPECT_TRUE(penalized({1, 2, 3, 5, 9, 2, 3, 5, 9, 1, 2, 3}, 1.5f)) << "the longest counts";
  EXPECT_TRUE(penalized(std::vector<int32_t>(3000, 5), 100.0f)) << "a long one is no overflow";
  params.dry->last_tokens = 4;
  EXPECT_FALSE(penalized({2, 3, 5, 7, 2, 3}, 0.5f)) << "the first one is out of sight";
  params.dry->last_tokens = -1;
  params.dry->breakers = {false, false, true};
  EXPECT_FALSE(penalized({1, 2, 3, 5, 7, 1, 2, 3}, 0.5f)) << "none goes over token 2";
  params.dry->breakers = {false, false, false, false, false, true};
  EXPECT_FALSE(penalized({2, 3, 5, 7, 2, 3}, 0.5f)) << "a breaker itself may come again";
}

TEST(Sampler, DryBreakersMaySpanTokens) {
  SamplingParams params = Greedy();
  params.dry = DryParams{.multiplier = 1, .base = 2, .allowed_length = 2};
  const auto penalized = [&](const std::vector<int32_t>& history) {
    std::vector<float> led(10, 0.0f);
    led[5] = 0.5f;  // the token that would repeat
    return TokenOf(Make(params, 10, history), led) != 5;
  };
  const std::vector<std::string> texts = {"a", "b", "c", "d", "e", "f", "xb", "cx", "cab", "z"};
  params.dry->bytes_of = [&texts](int32_t id) -> std::string_view { return texts[static_cast<size_t>(id)]; };
  const std::vector<int32_t> repeats = {1, 2, 3, 5, 9, 1, 2, 3};  // "bcdfzbcd", then 5
  EXPECT_TRUE(penalized(repeats));
  params.dry->breaker_texts = {"bc"};
  EXPECT_FALSE(penalized(repeats)) << "behind it there is one token, which is free";
  EXPECT_TRUE(penalized({1, 2, 3, 4, 5, 9, 1, 2, 3, 4})) << "behind it there are two";
  EXPECT_TRUE(penalized({2, 3, 5, 9, 2, 3})) << "half of it is none";
  params.dry->breaker_texts = {"zbcd", "q"};
  EXPECT_FALSE(penalized(repeats)) << "of four tokens";
  params.dry->breaker_texts = {"bcx"};
  EXPECT_FALSE(penalized({6, 7, 3, 5, 9, 6, 7, 3})) << "within \"xbcx\"";
  params.dry->breaker_texts = {"zb"};
  EXPECT_TRUE(penalized({1, 2, 3, 4, 5, 9, 1, 2, 3, 4})) << "bcde follows it";
}

TEST(Sampler, DryFindsWhatComparingEverySuffixFinds) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> history(1 + random() % 40);
    for (int32_t& id : history) id = static_cast<int32_t>(random() % 3);
    std::vector<double> want(3, 0);
    for (size_t end = 1; end < history.size(); ++end) {  // history[end] followed a match of `length` tokens
      size_t length = 0;
      while (length < end && history[end - 1 - length] == history[history.size() - 1 - length]) ++length;
      if (length >= 2) want[history[end]] = std::max(want[history[end]], std::pow(1.5, static_cast<double>(length) - 2));
    }
    SamplingParams params = Greedy();
    params.dry = DryParams{.multiplier = 1, .base = 1.5f};
    const int32_t best = static_cast<int32_t>(std::min_element(want.begin(), want.end()) - want.begin());
    EXPECT_EQ(TokenOf(Make(params, 3, history), {0, 0, 0}), best) << round;
  }
}

TEST(SamplingParams, RefuseFurtherSamplersByName) {
  const auto refused = [](const SamplingParams& params, const char* field) {
    EXPECT_THAT(CheckSamplingParams(params, 10), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(field)));
  };
  for (const float bad : {0.0f, 1.1f, kNanLogit}) refused({.typical_p = bad}, "typical_p");
  for (const float bad : {-1.0f, 101.0f, kNanLogit}) refused({.top_n_sigma = bad}, "top_n_sigma");
  for (const float bad : {-0.1f, 1.1f, kNanLogit}) refused({.xtc_probability = bad}, "xtc_probability");
  for (const float bad : {-0.1f, 1.1f, kNanLogit}) refused({.xtc_threshold = bad}, "xtc_threshold");
  for (const float bad : {-0.1f, 101.0f, kNanLogit}) refused({.dry = DryParams{.multiplier = bad}}, "dry.multiplier");
  for (const float bad : {0.5f, 101.0f, kNanLogit}) refused({.dry = DryParams{.multiplier = 1, .base = bad}}, "dry.base");
  for (const int32_t bad : {0, 10'001}) refused({.dry = DryParams{.multiplier = 1, .allowed_length = bad}}, "dry.allowed_length");
  EXPECT_EQ(CandidatesNeeded({.top_k = 5, .top_n_sigma = 1}, 1000), 1000);
  EXPECT_EQ(CandidatesNeeded({.top_k = 5, .dry = DryParams{.multiplier = 1}}, 1000), 1000);
  EXPECT_EQ(CandidatesNeeded({.top_k = 5, .typical_p = 0.5f, .xtc_probability = 1, .dry = DryParams{}}, 1000), 5);
}

TEST(SamplingParams, RefusesAPromptOutsideTheVocabulary) {
  EXPECT_THAT(Sampler::Create({}, 10, std::vector<int32_t>{3, 10}, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("prompt id 1 is 10")));
}

TEST(CandidatesNeeded, IsAsFewAsDecideTheToken) {
  constexpr int32_t kVocab = 1000;
  EXPECT_EQ(CandidatesNeeded({}, kVocab), 40);
  EXPECT_EQ(CandidatesNeeded({.top_k = 7}, kVocab), 7);
  EXPECT_EQ(CandidatesNeeded({.top_k = 7, .logprobs = 20}, kVocab), 20);
  EXPECT_EQ(CandidatesNeeded({.temperature = 0}, kVocab), 1);
  EXPECT_EQ(CandidatesNeeded({.temperature = 0, .top_k = 50, .logprobs = 5}, kVocab), 5);
  EXPECT_EQ(CandidatesNeeded({.top_k = 5000}, kVocab), kVocab);
}

TEST(CandidatesNeeded, IsTheWholeVocabularyForPenaltiesBiasesAndNoTopK) {
  constexpr int32_t kVocab = 1000;
  EXPECT_EQ(CandidatesNeeded({.top_k = 0}, kVocab), kVocab);
  EXPECT_EQ(CandidatesNeeded({.top_k = 5, .repetition_penalty = 1.1f}, kVocab), kVocab);
  EXPECT_EQ(CandidatesNeeded({.top_k = 5, .frequency_penalty = 0.1f}, kVocab), kVocab);
  EXPECT_EQ(CandidatesNeeded({.top_k = 5, .presence_penalty = -0.1f}, kVocab), kVocab);
  EXPECT_EQ(CandidatesNeeded({.temperature = 0, .logit_bias = {{1, 1.f}}}, kVocab), kVocab);
  EXPECT_EQ(CandidatesNeeded({.temperature = 0, .repetition_penalty = 1, .frequency_penalty = 0}, kVocab), 1);
}

TEST(BestCandidates, AreThoseThatSortingGives) {
  for (const int32_t count : {0, 1, 2, 40, 999, 1000, 2000}) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
      std::vector<float> logits = RandomLogits(1000, seed);
      if (seed % 2 == 0) {
        for (float& logit : logits) logit = std::round(logit);  // ties
      }
      if (seed % 5 == 0) std::sort(logits.begin(), logits.end());
      std::vector<std::pair<float, int32_t>> want;
      for (int32_t id = 0; id < 1000; ++id) want.push_back({-logits[id], id});
      std::sort(want.begin(), want.end());
      ASSERT_OK_AND_ASSIGN(const std::vector<Candidate> best, BestCandidates(logits, count));
      ASSERT_EQ(best.size(), static_cast<size_t>(std::min(count, 1000)));
      for (size_t i = 0; i < best.size(); ++i) ASSERT_EQ(best[i].id, want[i].second) << count << " " << seed;
    }
  }
}

TEST(LogSumExp, HoldsLargeLogitsAndShowsWhatIsNotFinite) {
  EXPECT_THAT(LogSumExp(std::vector<float>{1000, 1000}), DoubleNear(1000 + std::log(2), 1e-6));
  EXPECT_THAT(LogSumExp(std::vector<float>{-kInfiniteLogit, 0}), DoubleNear(0, 1e-12));
  EXPECT_FALSE(std::isfinite(LogSumExp(std::vector<float>{1, kNanLogit})));
  EXPECT_FALSE(std::isfinite(LogSumExp(std::vector<float>{1, kInfiniteLogit})));
}

TEST(LogSumExp, AgreesWithLibmInDouble) {
  for (const int n : {1, 2, 15, 16, 17, 1000, 201'088}) {
    for (const float spread : {0.01f, 3.f, 30.f, 1000.f}) {
      const std::vector<float> logits = RandomLogits(n, n, spread);
      const double max = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const float logit : logits) sum += std::exp(logit - max);
      EXPECT_THAT(LogSumExp(logits), DoubleNear(max + std::log(sum), 1e-6)) << n << " " << spread;
    }
  }
}

// 0.15 ms in a release build on one Zen 5 core; the bound is for sanitizers.
TEST(Sampler, SamplesFromAGptOssVocabularyInWellUnderAMillisecond) {
  const std::vector<float> logits = RandomLogits(201'088, 3);
  Sampler sampler = Make({.seed = 1}, 201'088);
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double start = ThreadCpuSeconds();
    sampler.Accept(TokenOf(sampler, logits));
    best = std::min(best, ThreadCpuSeconds() - start);
  }
  RecordProperty("microseconds", static_cast<int>(best * 1e6));
  EXPECT_LT(best, 0.010);
}

}  // namespace
}  // namespace ferry
