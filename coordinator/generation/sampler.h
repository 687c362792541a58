#pragma once

// Chooses the next token from the logits. Pure: no clock, no global state; the same logits, parameters, history and
// seed give the same token, whatever else is being generated.
//
// What happens to a row of logits, in this order:
//   1. repetition penalty: the logit of every token of the prompt and the output is divided by it if positive, else
//      multiplied; frequency penalty: minus penalty x count in the output; presence penalty: minus penalty for every
//      token of the output (as in vLLM); dry: tokens that would go on with a repetition lose multiplier x
//      base^(length of the repetition - allowed_length), the longest repetition counts
//   2. logit_bias is added
//      a mask, if there is one, leaves the tokens that it allows
//   3. temperature 0: the best token. Otherwise
//   4. top_n_sigma: those stay whose logit is at most n standard deviations of all logits below the best one's
//      top_k: the k best stay
//   5. probabilities are the softmax of (logit / temperature) over what stayed; for typical_p and xtc, of the logits as they
//      are (as in llama.cpp)
//   6. typical_p: of these the smallest number stays whose probabilities reach typical_p, those first whose surprise
//      -log(p) is nearest to the mean surprise
//      top_p: of these the smallest number of best ones whose probabilities reach top_p stay
//   7. min_p: of these the ones with at least min_p times the best one's probability stay
//      xtc: with probability xtc_probability, of those with at least xtc_threshold only the least probable one stays, and those
//      below
//   8. one of them is drawn in proportion to its probability
// Everywhere "best" means the higher logit, of equal ones the lower id.
//
// Log-probabilities are those of the raw logits, before step 1, as in vLLM: logit - log(sum(exp(all logits))).

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/status.h"

namespace ferry {

struct DryParams {
  float multiplier = 0;        // [0, 100]; 0: off
  float base = 1.75f;          // [1, 100]
  int32_t allowed_length = 2;  // [1, 10000]
  int64_t last_tokens = -1;    // so many of prompt and output are looked at; -1: all
  std::vector<bool> breakers;  // by id: no repetition goes over these tokens; may be shorter than the vocabulary
  // Nor over a text that ends in a token and began in an earlier one. `bytes_of`, of a token, outlives the sampler; it is needed
  // where there are texts.
  std::vector<std::string> breaker_texts;
  std::function<std::string_view(int32_t)> bytes_of;
};

struct SamplingParams {                     // unset means:
  std::optional<float> temperature;         // 0.8        [0, 100]; 0: greedy
  std::optional<int32_t> top_k;             // 40         at least -1; 0 or -1: all tokens
  std::optional<float> top_p;               // 0.95       (0, 1]; 1: off
  std::optional<float> min_p;               // 0.05       [0, 1]; 0: off
  std::optional<float> repetition_penalty;  // 1          (0, 100]; 1: off
  std::optional<float> frequency_penalty;   // 0          [-2, 2]; 0: off
  std::optional<float> presence_penalty;    // 0          [-2, 2]; 0: off
  std::optional<uint64_t> seed;             // the caller's fallback seed
  std::map<int32_t, float> logit_bias;      // none       id -> [-100, 100]
  std::optional<float> typical_p;           // 1          (0, 1]; 1: off
  std::optional<float> top_n_sigma;         // 0          [0, 100]; 0: off
  std::optional<float> xtc_probability;     // 0          [0, 1]; 0: off
  std::optional<float> xtc_threshold;       // 0.1        [0, 1]
  std::optional<DryParams> dry;             // off
  std::optional<int32_t> logprobs;          // not given  [0, 100]: the chosen token's and so many of the best
};

// InvalidArgument names the field, its value and the allowed range.
absl::Status CheckSamplingParams(const SamplingParams& params, int32_t vocab_size);

// How many of the best logits of a row decide exactly what the whole row would: what a worker must send. vocab_size
// when penalties, biases, top_n_sigma or the lack of a top_k need them all. `params` have passed CheckSamplingParams.
int32_t CandidatesNeeded(const SamplingParams& params, int32_t vocab_size);

// One row of raw logits, borrowed: whole, or its best ones.
struct LogitsRow {
  std::span<const float> logits;
  std::span<const int32_t> ids;  // of the logits, in any order; empty: logits[i] is token i's, and all are there
  double log_sum_exp = 0;        // of the whole row; only read when ids is not empty

  static LogitsRow Whole(std::span<const float> logits) { return {.logits = logits, .ids = {}, .log_sum_exp = 0}; }
  static LogitsRow Best(std::span<const int32_t> ids, std::span<const float> logits, double log_sum_exp) {
    return {.logits = logits, .ids = ids, .log_sum_exp = log_sum_exp};
  }
};

// log(sum(exp(logits))) within 1e-6, summed in double in a fixed order. NaN when a logit is NaN or +infinity, or when
// there is none but -infinity.
double LogSumExp(std::span<const float> logits);

struct Candidate {
  int32_t id;
  float logit;
};
// The `count` best of a row with all logits, best first. Internal, naming the index: a logit is not finite.
absl::StatusOr<std::vector<Candidate>> BestCandidates(std::span<const float> logits, int32_t count);

struct TokenLogprob {
  int32_t id;
  double logprob;
};
struct SampledToken {
  int32_t id = -1;
  std::optional<double> logprob;   // of id; with params.logprobs
  std::vector<TokenLogprob> best;  // params.logprobs of them, best first
};

// The sampling of one request: its parameters and what it has seen. Movable; one thread at a time.
class Sampler {
 public:
  // InvalidArgument: what CheckSamplingParams says, or a prompt id outside [0, vocab_size). `fallback_seed` is used
  // when params.seed is not set.
  static absl::StatusOr<Sampler> Create(const SamplingParams& params, int32_t vocab_size, std::span<const int32_t> prompt,
                                        uint64_t fallback_seed);

  // The token that follows; draws with a random number made of the seed and the number of tokens accepted so far, so
  // asking again gives the same answer. Internal: a logit is not finite. InvalidArgument: the row has another number of
  // logits than vocab_size, or, when it is the best ones, fewer than candidates_needed(), ids that repeat or are out of
  // range, or a log_sum_exp that is not finite.
  // `allowed`: one bit for each token from id 0, the lowest bit first; tokens beyond it are not allowed. Empty: all are. A row
  // that is sampled with a mask has all logits. FailedPrecondition: the mask allows no token.
  absl::StatusOr<SampledToken> Sample(const LogitsRow& row, std::span<const uint64_t> allowed = {}) const;
  // `id` was appended to the output (what Sample gave, or what the caller forces). It must be in [0, vocab_size).
  void Accept(int32_t id);

  int32_t candidates_needed() const { return CandidatesNeeded(params_, vocab_size_); }
  uint64_t seed() const { return seed_; }

 private:
  Sampler() = default;
  bool ChangesLogits() const;
  void ChangeLogits(std::span<float> logits) const;
  void PenalizeRepetitions(std::span<float> logits) const;
  void Remember(int32_t id);       // for dry
  bool EndsBreaker(int32_t id);    // behind history_
  int32_t NumChosenAmong() const;  // how many candidates Choose wants
  // The token among `candidates`, the best NumChosenAmong() in any order. Greedy: there is one.
  int32_t Choose(std::vector<Candidate> candidates) const;
  absl::Status CheckBest(const LogitsRow& row) const;
  absl::StatusOr<SampledToken> SampleWhole(std::span<const float> logits, std::span<const uint64_t> allowed) const;
  SampledToken WithLogprobs(const Candidate& chosen, std::span<const Candidate> best, double log_sum_exp) const;

  SamplingParams params_;
  int32_t vocab_size_ = 0;
  uint64_t seed_ = 0;
  int64_t num_accepted_ = 0;
  std::vector<int32_t> history_;                        // with dry: prompt and output
  std::vector<bool> ends_breaker_;                      // likewise: of each token of it
  std::string recent_;                                  // the last bytes of its text, in which a breaker may have begun
  std::unordered_map<int32_t, int64_t> output_counts_;  // of every token of prompt and output; 0: in the prompt only
};

}  // namespace ferry
