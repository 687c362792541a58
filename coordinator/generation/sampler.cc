#include "coordinator/generation/sampler.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

namespace ferry {
namespace {

constexpr float kDefaultTemperature = 0.8f;
constexpr int32_t kDefaultTopK = 40;
constexpr float kDefaultTopP = 0.95f;
constexpr float kDefaultMinP = 0.05f;
constexpr float kDefaultXtcThreshold = 0.1f;
constexpr uint64_t kXtcStream = 0x7874632D63686F69;  // its random numbers are not those that draw
constexpr double kMaxDryPenalty = 1e30;

constexpr float kMaxTemperature = 100;
constexpr float kMaxRepetitionPenalty = 100;
constexpr float kMaxOtherPenalty = 2;
constexpr float kMaxBias = 100;
constexpr float kMaxSigmas = 100;
constexpr float kMaxDryNumber = 100;
constexpr int32_t kMaxDryLength = 10000;
constexpr int32_t kMaxLogprobs = 100;

float Temperature(const SamplingParams& params) { return params.temperature.value_or(kDefaultTemperature); }
float TopP(const SamplingParams& params) { return params.top_p.value_or(kDefaultTopP); }
float MinP(const SamplingParams& params) { return params.min_p.value_or(kDefaultMinP); }
int32_t TopK(const SamplingParams& params, int32_t vocab_size) {
  const int32_t top_k = params.top_k.value_or(kDefaultTopK);
  return top_k <= 0 ? vocab_size : std::min(top_k, vocab_size);
}
bool IsGreedy(const SamplingParams& params) { return Temperature(params) == 0; }
bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty.value_or(1) != 1 || params.frequency_penalty.value_or(0) != 0 ||
         params.presence_penalty.value_or(0) != 0;
}
bool HasDry(const SamplingParams& params) { return params.dry && params.dry->multiplier > 0 && params.dry->last_tokens != 0; }
float TopNSigma(const SamplingParams& params) { return IsGreedy(params) ? 0 : params.top_n_sigma.value_or(0); }

// Written so that a NaN fails it.
bool IsWithin(std::optional<float> value, float min, float max) { return !value || (*value >= min && *value <= max); }

bool IsBetter(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

bool IsFinite(float value) { return (std::bit_cast<uint32_t>(value) & 0x7F800000) != 0x7F800000; }

absl::Status CheckFinite(std::span<const float> logits) {
  uint32_t any = 0;  // the loop without a branch is vectorised
  for (const float logit : logits) any |= !IsFinite(logit);
  if (any == 0) return absl::OkStatus();
  const size_t i = std::find_if_not(logits.begin(), logits.end(), IsFinite) - logits.begin();
  return Internal("logit %d of %d is %f: the model's computation went wrong", i, logits.size(), logits[i]);
}

// Integers in the order of the floats (not NaN) they are made of: the compiler vectorises a maximum of integers.
int32_t OrderKey(float value) {
  const int32_t bits = std::bit_cast<int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
float FloatOfOrderKey(int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF)); }

// exp(x) for x <= 0 within 2e-7 of its value; at least exp(-87), which no sum with a 1 in it notices. Plain arithmetic,
// so that loops over it are vectorised and give the same bits on every machine (201,088 logits: 0.3 ms with SSE2,
// libm's expf 0.8).
float ExpOfNonPositive(float x) {
  // max(x, -87) in integers, for the same reason: among negative floats the larger bits are the smaller number.
  x = std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(-87.0f)));
  constexpr float kRounder = 0x1.8p23f;  // added and subtracted: rounds to an integer
  const float n = (x * 1.44269504f + kRounder) - kRounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2, |r| <= 0.35
  const float exp_r = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
  return exp_r * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// The random number of one step: splitmix64 (Steele, Lea, Flood 2014), whose n-th output needs no earlier ones. In [0,
// 1).
double UniformOf(uint64_t seed, uint64_t step) {
  const auto mix = [](uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
  };
  // Seeds are mixed first: the streams of seeds that differ by the step constant would else be shifts of each other.
  const uint64_t bits = mix(mix(seed + 0x9E3779B97F4A7C15) + (step + 1) * 0x9E3779B97F4A7C15);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// How many of the best candidates hold `top_p` of the weight. Sorts that many to the front, best first.
// `weights_of` gives a candidate's weight, `total` is the sum of all.
template <typename WeightOf>
size_t CutToTopP(std::vector<Candidate>* candidates, double top_p, double total, const WeightOf& weight_of) {
  double sum = 0;
  size_t sorted = 0;
  // In growing portions: a few hundred nearly always reach top_p, and sorting a whole vocabulary takes 20 ms.
  for (size_t portion = 256; sorted < candidates->size(); portion *= 4) {
    const size_t end = std::min(candidates->size(), sorted + portion);
    const auto begin = candidates->begin();
    if (end < candidates->size()) std::nth_element(begin + sorted, begin + end, candidates->end(), IsBetter);
    std::sort(begin + sorted, begin + end, IsBetter);
    for (; sorted < end; ++sorted) {
      sum += weight_of((*candidates)[sorted]);
      if (sum >= top_p * total) return sorted + 1;
    }
  }
  return sorted;
}

// Leaves the smallest number of candidates whose weights reach `typical_p` of `total`, those first whose surprise is nearest to
// the mean one.
template <typename WeightOf>
void CutToTypical(std::vector<Candidate>* candidates, double typical_p, double total, const WeightOf& weight_of) {
  double entropy = 0;
  for (const Candidate& candidate : *candidates) {
    const double p = weight_of(candidate) / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  std::vector<std::pair<double, Candidate>> by_distance;
  by_distance.reserve(candidates->size());
  for (const Candidate& candidate : *candidates) {
    by_distance.emplace_back(std::abs(-std::log(weight_of(candidate) / total) - entropy), candidate);
  }
  std::sort(by_distance.begin(), by_distance.end(), [](const auto& a, const auto& b) {
    return a.first < b.first || (a.first == b.first && IsBetter(a.second, b.second));
  });
  candidates->clear();
  double sum = 0;
  for (const auto& [distance, candidate] : by_distance) {
    candidates->push_back(candidate);
    sum += weight_of(candidate);
    if (sum >= typical_p * total) return;
  }
}

// Of the candidates with at least `threshold` of the weight, removes all but the least probable one.
template <typename WeightOf>
void ExcludeTopChoices(std::vector<Candidate>* candidates, double threshold, double total, const WeightOf& weight_of) {
  std::sort(candidates->begin(), candidates->end(), IsBetter);
  size_t above = 0;
  while (above < candidates->size() && weight_of((*candidates)[above]) >= threshold * total) ++above;
  if (above > 1) candidates->erase(candidates->begin(), candidates->begin() + static_cast<std::ptrdiff_t>(above) - 1);
}

// The standard deviation of the logits of the tokens that the mask allows; without a mask, of all.
double SigmaOf(std::span<const float> logits, std::span<const uint64_t> allowed) {
  double sum = 0, squares = 0, count = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!allowed.empty() && (id / 64 >= allowed.size() || (allowed[id / 64] >> (id % 64) & 1) == 0)) continue;
    sum += logits[id];
    squares += double{logits[id]} * logits[id];
    ++count;
  }
  const double mean = count > 0 ? sum / count : 0;
  return count > 0 ? std::sqrt(std::max(0.0, squares / count - mean * mean)) : 0;
}

// The `wanted` best of the candidates that it is shown, which come in order of their ids. It collects those that beat the worst
// of the best so far, and cuts back to `wanted` whenever twice as many lie there: linear for every order of the logits. Equal
// logits come in order of id, so a later equal one never belongs.
class BestSoFar {
 public:
  // Of at most `most` candidates. `wanted` is above 0.
  BestSoFar(size_t wanted, size_t most) : wanted_(wanted), room_(2 * wanted + 64) { best_.reserve(std::min(room_, most)); }
  void Add(int32_t id, float logit) {
    if (!(logit > bar_)) return;
    best_.push_back({id, logit});
    if (best_.size() == room_) CutBack();
  }
  // In any order.
  std::vector<Candidate> Take() {
    if (best_.size() > wanted_) CutBack();
    return std::move(best_);
  }

 private:
  void CutBack() {
    std::nth_element(best_.begin(), best_.begin() + static_cast<std::ptrdiff_t>(wanted_ - 1), best_.end(), IsBetter);
    best_.resize(wanted_);
    bar_ = best_.back().logit;
  }

  const size_t wanted_, room_;
  std::vector<Candidate> best_;
  float bar_ = -std::numeric_limits<float>::infinity();
};

// The `count` best of the tokens that a mask allows, in any order. The logits are finite.
std::vector<Candidate> BestAllowed(std::span<const float> logits, std::span<const uint64_t> allowed, int32_t count) {
  BestSoFar best(static_cast<size_t>(count), logits.size());
  const size_t words = std::min(allowed.size(), (logits.size() + 63) / 64);
  for (size_t word = 0; word < words; ++word) {
    for (uint64_t left = allowed[word]; left != 0; left &= left - 1) {
      const size_t id = 64 * word + static_cast<size_t>(std::countr_zero(left));
      if (id < logits.size()) best.Add(static_cast<int32_t>(id), logits[id]);
    }
  }
  return best.Take();
}

}  // namespace

namespace {

absl::Status CheckDry(const DryParams& dry) {
  if (!IsWithin(dry.multiplier, 0, kMaxDryNumber)) {
    return InvalidArgument("dry.multiplier is %g, want a value in [0, %g]", dry.multiplier, kMaxDryNumber);
  }
  if (!IsWithin(dry.base, 1, kMaxDryNumber)) {
    return InvalidArgument("dry.base is %g, want a value in [1, %g]", dry.base, kMaxDryNumber);
  }
  if (dry.allowed_length < 1 || dry.allowed_length > kMaxDryLength) {
    return InvalidArgument("dry.allowed_length is %d, want a value in [1, %d]", dry.allowed_length, kMaxDryLength);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSamplingParams(const SamplingParams& params, int32_t vocab_size) {
  if (!IsWithin(params.temperature, 0, kMaxTemperature)) {
    return InvalidArgument("temperature is %g, want a value in [0, %g]", *params.temperature, kMaxTemperature);
  }
  if (params.top_k && *params.top_k < -1) {
    return InvalidArgument("top_k is %d, want at least 1, or 0 or -1 for all tokens", *params.top_k);
  }
  if (!IsWithin(params.top_p, FLT_TRUE_MIN, 1)) {
    return InvalidArgument("top_p is %g, want a value in (0, 1]", *params.top_p);
  }
  if (!IsWithin(params.min_p, 0, 1)) return InvalidArgument("min_p is %g, want a value in [0, 1]", *params.min_p);
  if (!IsWithin(params.repetition_penalty, FLT_TRUE_MIN, kMaxRepetitionPenalty)) {
    return InvalidArgument("repetition_penalty is %g, want a value in (0, %g]", *params.repetition_penalty,
                           kMaxRepetitionPenalty);
  }
  if (!IsWithin(params.frequency_penalty, -kMaxOtherPenalty, kMaxOtherPenalty)) {
    return InvalidArgument("frequency_penalty is %g, want a value in [-2, 2]", *params.frequency_penalty);
  }
  if (!IsWithin(params.presence_penalty, -kMaxOtherPenalty, kMaxOtherPenalty)) {
    return InvalidArgument("presence_penalty is %g, want a value in [-2, 2]", *params.presence_penalty);
  }
  if (!IsWithin(params.typical_p, FLT_TRUE_MIN, 1)) {
    return InvalidArgument("typical_p is %g, want a value in (0, 1]", *params.typical_p);
  }
  if (!IsWithin(params.top_n_sigma, 0, kMaxSigmas)) {
    return InvalidArgument("top_n_sigma is %g, want a value in [0, %g]", *params.top_n_sigma, kMaxSigmas);
  }
  if (!IsWithin(params.xtc_probability, 0, 1)) {
    return InvalidArgument("xtc_probability is %g, want a value in [0, 1]", *params.xtc_probability);
  }
  if (!IsWithin(params.xtc_threshold, 0, 1)) {
    return InvalidArgument("xtc_threshold is %g, want a value in [0, 1]", *params.xtc_threshold);
  }
  if (params.dry) RETURN_IF_ERROR(CheckDry(*params.dry));
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return InvalidArgument("logit_bias names token %d, want an id in [0, %d)", id, vocab_size);
    }
    if (!IsWithin(bias, -kMaxBias, kMaxBias)) {
      return InvalidArgument("logit_bias of token %d is %g, want a value in [-100, 100]", id, bias);
    }
  }
  if (params.logprobs && (*params.logprobs < 0 || *params.logprobs > kMaxLogprobs)) {
    return InvalidArgument("logprobs is %d, want a value in [0, %d]", *params.logprobs, kMaxLogprobs);
  }
  return absl::OkStatus();
}

int32_t CandidatesNeeded(const SamplingParams& params, int32_t vocab_size) {
  if (HasPenalties(params) || HasDry(params) || TopNSigma(params) > 0 || !params.logit_bias.empty()) return vocab_size;
  const int32_t chosen_among = IsGreedy(params) ? 1 : TopK(params, vocab_size);
  return std::min(vocab_size, std::max(chosen_among, params.logprobs.value_or(0)));
}

double LogSumExp(std::span<const float> logits) {
  int32_t max_key = OrderKey(-std::numeric_limits<float>::infinity());
  uint32_t any_nan = 0;
  for (const float logit : logits) {
    max_key = std::max(max_key, OrderKey(logit));
    any_nan |= (std::bit_cast<uint32_t>(logit) & 0x7FFFFFFF) > 0x7F800000;
  }
  const float max = FloatOfOrderKey(max_key);
  if (any_nan != 0 || !IsFinite(max)) return std::numeric_limits<double>::quiet_NaN();
  // In portions: the first loop is vectorised, the second keeps the order of the sum fixed.
  constexpr size_t kPortion = 64;
  double sums[4] = {};
  for (size_t begin = 0; begin < logits.size(); begin += kPortion) {
    const size_t n = std::min(kPortion, logits.size() - begin);
    float weights[kPortion];
    for (size_t i = 0; i < n; ++i) weights[i] = ExpOfNonPositive(logits[begin + i] - max);
    for (size_t i = n; i < kPortion; ++i) weights[i] = 0;
    for (size_t i = 0; i < kPortion; i += 4) {
      for (size_t lane = 0; lane < 4; ++lane) sums[lane] += weights[i + lane];
    }
  }
  return static_cast<double>(max) + std::log((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

absl::StatusOr<std::vector<Candidate>> BestCandidates(std::span<const float> logits, int32_t count) {
  RETURN_IF_ERROR(CheckFinite(logits));
  std::vector<Candidate> best;
  const size_t wanted = std::min(logits.size(), static_cast<size_t>(std::max(count, 0)));
  if (wanted == 0) return best;
  BestSoFar collected(wanted, logits.size());
  for (size_t id = 0; id < logits.size(); ++id) collected.Add(static_cast<int32_t>(id), logits[id]);
  best = collected.Take();
  std::sort(best.begin(), best.end(), IsBetter);
  return best;
}

absl::StatusOr<Sampler> Sampler::Create(const SamplingParams& params, int32_t vocab_size, std::span<const int32_t> prompt,
                                        uint64_t fallback_seed) {
  if (vocab_size < 1) return InvalidArgument("vocab_size is %d, want at least 1", vocab_size);
  RETURN_IF_ERROR(CheckSamplingParams(params, vocab_size));
  Sampler sampler;
  sampler.params_ = params;
  sampler.vocab_size_ = vocab_size;
  sampler.seed_ = params.seed.value_or(fallback_seed);
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab_size) {
      return InvalidArgument("prompt id %d is %d, want an id in [0, %d)", i, prompt[i], vocab_size);
    }
    if (HasPenalties(params)) sampler.output_counts_.emplace(prompt[i], 0);
  }
  if (HasDry(params)) {
    for (const int32_t id : prompt) sampler.Remember(id);
  }
  return sampler;
}

void Sampler::Remember(int32_t id) {
  ends_breaker_.push_back(EndsBreaker(id));
  history_.push_back(id);
}

bool Sampler::EndsBreaker(int32_t id) {
  const DryParams& dry = *params_.dry;
  bool ends = static_cast<size_t>(id) < dry.breakers.size() && dry.breakers[static_cast<size_t>(id)];
  size_t longest = 0;
  for (const std::string& text : dry.breaker_texts) longest = std::max(longest, text.size());
  if (longest < 2) return ends;  // one byte spans no tokens
  const size_t before = recent_.size();
  recent_ += dry.bytes_of(id);
  for (const std::string& text : dry.breaker_texts) {
    // One that ended before this token is that token's.
    const size_t first = before >= text.size() ? before - text.size() + 1 : 0;
    ends = ends || recent_.find(text, first) != std::string::npos;
  }
  if (recent_.size() >= longest) recent_.erase(0, recent_.size() - (longest - 1));
  return ends;
}

void Sampler::Accept(int32_t id) {
  ++num_accepted_;
  if (HasPenalties(params_)) ++output_counts_[id];
  if (HasDry(params_)) Remember(id);
}

bool Sampler::ChangesLogits() const {
  return !params_.logit_bias.empty() || HasDry(params_) || (HasPenalties(params_) && !output_counts_.empty());
}

// With the history backwards, matches[i] tokens before place i are those before the end: the token that followed place i would
// make the repetition one longer. All of them are found in one pass (the Z algorithm).
void Sampler::PenalizeRepetitions(std::span<float> logits) const {
  const DryParams& dry = *params_.dry;
  const size_t size = dry.last_tokens < 0 ? history_.size() : std::min(history_.size(), static_cast<size_t>(dry.last_tokens));
  const auto back = [&](size_t i) { return history_[history_.size() - 1 - i]; };
  const auto breaks = [&](int32_t id) {
    return static_cast<size_t>(id) < dry.breakers.size() && dry.breakers[static_cast<size_t>(id)];
  };
  size_t limit = 0;  // a repetition ends at a breaker
  while (limit < size && !ends_breaker_[history_.size() - 1 - limit]) ++limit;
  if (limit < static_cast<size_t>(dry.allowed_length)) return;
  std::vector<uint32_t> matches(size, 0);
  std::unordered_map<int32_t, size_t> longest;
  for (size_t i = 1, left = 0, right = 0; i < size; ++i) {
    size_t match = i < right ? std::min<size_t>(right - i, matches[i - left]) : 0;
    while (i + match < size && back(match) == back(i + match)) ++match;
    matches[i] = static_cast<uint32_t>(match);
    if (i + match > right) left = i, right = i + match;
    const size_t length = std::min(match, limit);
    const int32_t next = back(i - 1);
    if (length >= static_cast<size_t>(dry.allowed_length) && !breaks(next)) {
      size_t& most = longest[next];
      most = std::max(most, length);
    }
  }
  for (const auto& [id, length] : longest) {
    const double penalty = double{dry.multiplier} * std::pow(double{dry.base}, static_cast<double>(length) - dry.allowed_length);
    logits[id] = static_cast<float>(double{logits[id]} - std::min(penalty, kMaxDryPenalty));
  }
}

void Sampler::ChangeLogits(std::span<float> logits) const {
  const double repetition = params_.repetition_penalty.value_or(1);
  const double frequency = params_.frequency_penalty.value_or(0);
  const double presence = params_.presence_penalty.value_or(0);
  const auto set = [&](int32_t id, double logit) {
    logits[id] = static_cast<float>(std::clamp(logit, -double{FLT_MAX}, double{FLT_MAX}));
  };
  for (const auto& [id, count] : output_counts_) {
    double logit = logits[id];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    if (count > 0) logit -= frequency * static_cast<double>(count) + presence;
    set(id, logit);
  }
  if (HasDry(params_)) PenalizeRepetitions(logits);
  for (const auto& [id, bias] : params_.logit_bias) set(id, double{logits[id]} + bias);
}

int32_t Sampler::NumChosenAmong() const { return IsGreedy(params_) ? 1 : TopK(params_, vocab_size_); }

int32_t Sampler::Choose(std::vector<Candidate> candidates) const {
  if (IsGreedy(params_)) return candidates[0].id;
  const double temperature = Temperature(params_);
  const double best = std::min_element(candidates.begin(), candidates.end(), IsBetter)->logit;
  const auto weight_of = [&](const Candidate& candidate) { return std::exp((double{candidate.logit} - best) / temperature); };
  // As at temperature 1: typical_p and xtc look at the model's own probabilities, as in llama.cpp.
  const auto plain_weight_of = [&](const Candidate& candidate) { return std::exp(double{candidate.logit} - best); };
  const auto total_of = [&](const auto& weight) {
    return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                           [&](double sum, const Candidate& candidate) { return sum + weight(candidate); });
  };
  if (params_.typical_p.value_or(1) < 1) {
    CutToTypical(&candidates, *params_.typical_p, total_of(plain_weight_of), plain_weight_of);
  }
  if (TopP(params_) < 1) {
    candidates.resize(CutToTopP(&candidates, TopP(params_), total_of(weight_of), weight_of));
  }
  if (MinP(params_) > 0) {
    // The best one's weight is exp(0) = 1, unless it was not typical.
    const bool has_best = params_.typical_p.value_or(1) >= 1;
    const double most = has_best ? 1 : weight_of(*std::min_element(candidates.begin(), candidates.end(), IsBetter));
    std::erase_if(candidates, [&](const Candidate& candidate) { return weight_of(candidate) < MinP(params_) * most; });
  }
  if (params_.xtc_probability.value_or(0) > 0) {
    const double chance = UniformOf(seed_ ^ kXtcStream, static_cast<uint64_t>(num_accepted_));
    const double threshold = params_.xtc_threshold.value_or(kDefaultXtcThreshold);
    if (chance < *params_.xtc_probability) {
      ExcludeTopChoices(&candidates, threshold, total_of(plain_weight_of), plain_weight_of);
    }
  }
  // Along the ids, so that the token does not depend on how the candidates came to be in order.
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double left = UniformOf(seed_, static_cast<uint64_t>(num_accepted_)) * total_of(weight_of);
  for (const Candidate& candidate : candidates) {
    left -= weight_of(candidate);
    if (left < 0) return candidate.id;
  }
  // Rounding: the subtractions took a little less than the sum. The last one that has any weight.
  for (size_t i = candidates.size(); i-- > 0;) {
    if (weight_of(candidates[i]) > 0) return candidates[i].id;
  }
  return candidates[0].id;
}

absl::Status Sampler::CheckBest(const LogitsRow& row) const {
  if (row.ids.size() != row.logits.size()) {
    return InvalidArgument("the row has %d ids and %d logits", row.ids.size(), row.logits.size());
  }
  if (row.ids.size() < static_cast<size_t>(candidates_needed())) {
    return InvalidArgument("the row has %d candidates, want at least %d", row.ids.size(), candidates_needed());
  }
  if (!std::isfinite(row.log_sum_exp)) return InvalidArgument("log_sum_exp is %f", row.log_sum_exp);
  std::vector<int32_t> ids(row.ids.begin(), row.ids.end());
  std::sort(ids.begin(), ids.end());
  if (ids.front() < 0 || ids.back() >= vocab_size_) {
    return InvalidArgument("the row names token %d, want ids in [0, %d)", ids.front() < 0 ? ids.front() : ids.back(),
                           vocab_size_);
  }
  if (const auto twice = std::adjacent_find(ids.begin(), ids.end()); twice != ids.end()) {
    return InvalidArgument("the row names token %d twice", *twice);
  }
  return CheckFinite(row.logits);
}

absl::StatusOr<SampledToken> Sampler::Sample(const LogitsRow& row, std::span<const uint64_t> allowed) const {
  if (row.ids.empty()) {
    if (row.logits.size() != static_cast<size_t>(vocab_size_)) {
      return InvalidArgument("the row has %d logits, want %d", row.logits.size(), vocab_size_);
    }
    return SampleWhole(row.logits, allowed);
  }
  RETURN_IF_ERROR(CheckBest(row));
  if (row.ids.size() == static_cast<size_t>(vocab_size_)) {
    std::vector<float> logits(row.logits.size());
    for (size_t i = 0; i < logits.size(); ++i) logits[row.ids[i]] = row.logits[i];
    return SampleWhole(logits, allowed);
  }
  if (!allowed.empty()) return InvalidArgument("the row has %d of %d logits, want all under a mask", row.ids.size(), vocab_size_);
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < row.ids.size(); ++i) candidates.push_back({row.ids[i], row.logits[i]});
  std::sort(candidates.begin(), candidates.end(), IsBetter);
  const int32_t id = Choose(std::vector(candidates.begin(), candidates.begin() + NumChosenAmong()));
  const size_t place = std::find(row.ids.begin(), row.ids.end(), id) - row.ids.begin();
  return WithLogprobs({.id = id, .logit = row.logits[place]}, candidates, row.log_sum_exp);
}

absl::StatusOr<SampledToken> Sampler::SampleWhole(std::span<const float> logits, std::span<const uint64_t> allowed) const {
  RETURN_IF_ERROR(CheckFinite(logits));
  std::vector<float> changed;
  if (ChangesLogits()) {
    changed.assign(logits.begin(), logits.end());
    ChangeLogits(std::span(changed));
  }
  const std::span<const float> effective = changed.empty() ? logits : std::span<const float>(changed);
  std::vector<Candidate> candidates;
  if (!allowed.empty()) {
    candidates = BestAllowed(effective, allowed, NumChosenAmong());
    if (candidates.empty()) return FailedPrecondition("the mask allows none of the %d tokens", vocab_size_);
  } else if (NumChosenAmong() == vocab_size_) {
    // All of them, and no need to sort them.
    candidates.resize(vocab_size_);
    for (int32_t id = 0; id < vocab_size_; ++id) candidates[id] = {id, effective[id]};
  } else {
    ASSIGN_OR_RETURN(candidates, BestCandidates(effective, NumChosenAmong()));
  }
  if (TopNSigma(params_) > 0) {
    const float best = std::min_element(candidates.begin(), candidates.end(), IsBetter)->logit;
    const double least = best - double{TopNSigma(params_)} * SigmaOf(effective, allowed);
    std::erase_if(candidates, [&](const Candidate& candidate) { return candidate.logit < least; });
  }
  const int32_t id = Choose(std::move(candidates));
  if (!params_.logprobs) return SampledToken{.id = id, .logprob = std::nullopt, .best = {}};
  ASSIGN_OR_RETURN(const std::vector<Candidate> best, BestCandidates(logits, *params_.logprobs));
  return WithLogprobs({.id = id, .logit = logits[id]}, best, LogSumExp(logits));
}

SampledToken Sampler::WithLogprobs(const Candidate& chosen, std::span<const Candidate> best, double log_sum_exp) const {
  SampledToken sampled{.id = chosen.id, .logprob = std::nullopt, .best = {}};
  if (!params_.logprobs) return sampled;
  sampled.logprob = chosen.logit - log_sum_exp;
  for (const Candidate& candidate : best.first(std::min<size_t>(*params_.logprobs, best.size()))) {
    sampled.best.push_back({candidate.id, candidate.logit - log_sum_exp});
  }
  return sampled;
}

}  // namespace ferry
