#include "coordinator/generation/request.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "proto/expert_counters.h"

namespace ferry {
namespace {

constexpr int kMaxBreakers = 16;
constexpr size_t kMaxBreakerBytes = 64;

absl::StatusOr<DryParams> DryParamsOf(const v1::Dry& dry, const Tokenizer& tokenizer) {
  DryParams params = {.multiplier = dry.multiplier()};
  if (dry.has_base()) params.base = dry.base();
  // More than the largest allowed one is refused as that, and not after a narrowing.
  if (dry.has_allowed_length()) params.allowed_length = static_cast<int32_t>(std::min<uint32_t>(dry.allowed_length(), INT32_MAX));
  if (dry.has_last_tokens()) params.last_tokens = dry.last_tokens();
  if (dry.sequence_breakers_size() > kMaxBreakers) {
    return InvalidArgument("dry.sequence_breakers has %d texts, want at most %d", dry.sequence_breakers_size(), kMaxBreakers);
  }
  std::vector<std::string> breakers(dry.sequence_breakers().begin(), dry.sequence_breakers().end());
  if (breakers.empty() && !dry.no_sequence_breakers()) breakers = {"\n", ":", "\"", "*"};
  for (const std::string& breaker : breakers) {
    if (breaker.empty() || breaker.size() > kMaxBreakerBytes) {
      return InvalidArgument("dry.sequence_breakers has a text of %d bytes, want 1 to %d", breaker.size(), kMaxBreakerBytes);
    }
  }
  if (params.multiplier == 0 || breakers.empty()) return params;
  params.breaker_texts = breakers;
  params.bytes_of = [&tokenizer](int32_t id) { return tokenizer.TokenBytes(id); };
  params.breakers.resize(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.TokenBytes(id);
    params.breakers[static_cast<size_t>(id)] = std::any_of(breakers.begin(), breakers.end(), [&](const std::string& breaker) {
      return bytes.find(breaker) != std::string_view::npos;
    });
  }
  return params;
}

absl::StatusOr<SamplingParams> SamplingParamsOf(const v1::GenerateRequest& request, const Tokenizer& tokenizer,
                                                int64_t vocab_size) {
  const v1::Sampling& sampling = request.sampling();
  SamplingParams params;
  if (sampling.has_temperature()) params.temperature = sampling.temperature();
  // More than all tokens is all tokens; the comparison comes before the narrowing.
  if (sampling.has_top_k()) params.top_k = static_cast<int32_t>(std::min<int64_t>(sampling.top_k(), vocab_size));
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  if (sampling.has_min_p()) params.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) {
    if (!(sampling.repetition_penalty() > 0 && sampling.repetition_penalty() <= 10)) {
      return InvalidArgument("repetition_penalty is %g, want (0, 10]", sampling.repetition_penalty());
    }
    params.repetition_penalty = sampling.repetition_penalty();
  }
  if (sampling.has_frequency_penalty()) params.frequency_penalty = sampling.frequency_penalty();
  if (sampling.has_presence_penalty()) params.presence_penalty = sampling.presence_penalty();
  if (sampling.has_seed()) params.seed = sampling.seed();
  if (sampling.has_typical_p()) params.typical_p = sampling.typical_p();
  if (sampling.has_top_n_sigma()) params.top_n_sigma = sampling.top_n_sigma();
  if (sampling.has_xtc_probability()) params.xtc_probability = sampling.xtc_probability();
  if (sampling.has_xtc_threshold()) params.xtc_threshold = sampling.xtc_threshold();
  if (sampling.has_dry()) {
    ASSIGN_OR_RETURN(params.dry, DryParamsOf(sampling.dry(), tokenizer));
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (id >= vocab_size) return InvalidArgument("logit_bias names token %d, want 0 to %d", id, vocab_size - 1);
    params.logit_bias[static_cast<int32_t>(id)] = bias;
  }
  if (request.has_logprobs()) {
    if (request.logprobs() > kMaxLogprobsOfRequest) {
      return InvalidArgument("logprobs is %d, want 0 to %d", request.logprobs(), kMaxLogprobsOfRequest);
    }
    params.logprobs = static_cast<int32_t>(request.logprobs());
  }
  RETURN_IF_ERROR(CheckSamplingParams(params, static_cast<int32_t>(vocab_size)));
  return params;
}

absl::StatusOr<std::vector<int32_t>> PromptOf(const v1::GenerateRequest& request, const Tokenizer& tokenizer,
                                              const RequestLimits& limits) {
  const int64_t vocab_size = limits.vocab_size;
  if (request.has_text()) {
    if (static_cast<int64_t>(request.text().size()) / std::max<int64_t>(1, limits.max_token_bytes) > limits.context_tokens) {
      return InvalidArgument("text has %d bytes, more than the context's %d tokens can hold", request.text().size(),
                             limits.context_tokens);
    }
    const EncodeOptions options = {.add_bos = request.has_add_bos() ? request.add_bos() : tokenizer.adds_bos(),
                                   .parse_special = request.has_parse_special() ? request.parse_special() : true};
    return tokenizer.Encode(request.text(), options);
  }
  if (!request.has_tokens()) return InvalidArgument("prompt is missing: want text or tokens");
  std::vector<int32_t> ids;
  ids.reserve(request.tokens().ids_size());
  for (const uint32_t id : request.tokens().ids()) {
    if (id >= vocab_size) return InvalidArgument("tokens.ids[%d] is %d, want 0 to %d", ids.size(), id, vocab_size - 1);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

absl::StatusOr<StopMatcher> StopsOf(const v1::GenerateRequest& request) {
  if (request.stop_size() > kMaxStopStringsOfRequest) {
    return InvalidArgument("stop has %d strings, want at most %d", request.stop_size(), kMaxStopStringsOfRequest);
  }
  for (int i = 0; i < request.stop_size(); ++i) {
    if (request.stop(i).size() > kMaxStopBytesOfRequest) {
      return InvalidArgument("stop[%d] has %d bytes, want at most %d", i, request.stop(i).size(), kMaxStopBytesOfRequest);
    }
  }
  absl::StatusOr<StopMatcher> matcher = StopMatcher::Create({request.stop().begin(), request.stop().end()});
  if (!matcher.ok()) return Annotate(matcher.status(), "stop");
  return matcher;
}

// The most tokens of output that the request may have. InvalidArgument: there is no room for one, or min_tokens is above it.
absl::StatusOr<int64_t> MaxTokensOf(const v1::GenerateRequest& request, int64_t prompt_tokens, const RequestLimits& limits) {
  const int64_t room = limits.context_tokens - prompt_tokens;
  int64_t max_tokens = room;
  if (request.has_max_tokens()) {
    max_tokens = std::min<int64_t>(request.max_tokens(), room);
  } else if (prompt_tokens < limits.share_tokens) {
    max_tokens = std::min(room, limits.share_tokens - prompt_tokens);
  }
  if (max_tokens == 0 && !(request.has_max_tokens() && request.max_tokens() == 0)) {
    return InvalidArgument("prompt has %d tokens and the context %d: no room for output", prompt_tokens, limits.context_tokens);
  }
  if (request.min_tokens() > max_tokens) {
    return InvalidArgument("min_tokens is %d, want at most the %d tokens of output", request.min_tokens(), max_tokens);
  }
  if (request.min_tokens() > 0 && request.has_constraint()) {
    return InvalidArgument("min_tokens is %d, want 0 beside a constraint", request.min_tokens());
  }
  return max_tokens;
}

// The `count` best of what a worker sent, best first.
absl::StatusOr<std::vector<Candidate>> BestOf(const LogitsResult& row, int32_t count) {
  if (count == 0) return std::vector<Candidate>();
  if (row.ids.empty()) return BestCandidates(row.logits, count);
  std::vector<Candidate> best;
  for (size_t i = 0; i < row.ids.size() && static_cast<int32_t>(i) < count; ++i) best.push_back({row.ids[i], row.logits[i]});
  return best;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Request>> Request::Create(const v1::GenerateRequest& request, const Tokenizer* tokenizer,
                                                         const RequestLimits& limits, uint64_t fallback_seed, absl::Time deadline,
                                                         const Clock* clock, std::shared_ptr<GenerationSink> sink,
                                                         constraint::ConstraintCompiler* constraints) {
  ASSIGN_OR_RETURN(const SamplingParams params, SamplingParamsOf(request, *tokenizer, limits.vocab_size));
  ASSIGN_OR_RETURN(StopMatcher stops, StopsOf(request));
  for (const uint32_t id : request.stop_token_ids()) {
    if (id >= limits.vocab_size) return InvalidArgument("stop_token_ids has %d, want 0 to %d", id, limits.vocab_size - 1);
  }
  if (request.has_prompt_logprobs() && request.prompt_logprobs() > kMaxLogprobsOfRequest) {
    return InvalidArgument("prompt_logprobs is %d, want 0 to %d", request.prompt_logprobs(), kMaxLogprobsOfRequest);
  }
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptOf(request, *tokenizer, limits));
  const int64_t prompt_tokens = static_cast<int64_t>(prompt.size());
  if (prompt.empty()) return InvalidArgument("prompt has no tokens");
  if (prompt_tokens > limits.context_tokens) {
    return InvalidArgument("prompt has %d tokens, the context %d", prompt_tokens, limits.context_tokens);
  }
  ASSIGN_OR_RETURN(const int64_t max_tokens, MaxTokensOf(request, prompt_tokens, limits));
  std::unique_ptr<OutputConstraint> constraint;
  if (request.has_constraint()) {
    ASSIGN_OR_RETURN(constraint, OutputConstraint::Create(request.constraint(), limits.vocab_size, constraints));
  }
  ASSIGN_OR_RETURN(Sampler sampler, Sampler::Create(params, static_cast<int32_t>(limits.vocab_size), prompt, fallback_seed));
  std::shared_ptr<Request> result(new Request(tokenizer, request.render_special(), std::move(stops), std::move(sampler), clock));
  result->sink_ = std::move(sink);
  result->deadline_ = deadline;
  result->tokens_ = std::move(prompt);
  result->prompt_tokens_ = prompt_tokens;
  result->max_tokens_ = max_tokens;
  result->min_tokens_ = request.min_tokens();
  result->vocab_size_ = limits.vocab_size;
  result->between_messages_ = limits.between_messages;
  result->ignore_eos_ = request.ignore_eos();
  result->stop_token_ids_.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  // A special token that is not rendered never comes by as text.
  for (const std::string& stop : request.stop()) {
    if (const std::optional<int32_t> special = tokenizer->FindSpecial(stop)) result->stop_token_ids_.push_back(*special);
  }
  result->constraint_ = std::move(constraint);
  result->logprobs_ = request.has_logprobs();
  result->prompt_progress_ = request.prompt_progress();
  result->stop_strings_.assign(request.stop().begin(), request.stop().end());
  result->priority_ = request.priority();
  result->forget_experts_ = request.forget_experts();
  result->resumes_ = !request.has_resume() || request.resume();
  if (request.has_prompt_logprobs()) result->prompt_logprobs_ = static_cast<int32_t>(request.prompt_logprobs());
  return result;
}

Request::Request(const Tokenizer* tokenizer, bool render_special, StopMatcher stops, Sampler sampler, const Clock* clock)
    : tokenizer_(*tokenizer),
      clock_(*clock),
      render_special_(render_special),
      detokenizer_(tokenizer, render_special),
      stops_(std::move(stops)),
      sampler_(std::move(sampler)),
      queued_(clock->Now()),
      admitted_(queued_),
      prompt_done_(queued_) {}

std::optional<LogitsRequest> Request::LogitsAt(int64_t position) const {
  if (position < rows_done_) return std::nullopt;
  if (position < prompt_tokens_ - 1) {
    if (!prompt_logprobs_) return std::nullopt;
    return LogitsRequest{.top_n = *prompt_logprobs_, .target = tokens_[position + 1]};
  }
  if (max_tokens_ == 0) return std::nullopt;
  const int32_t top_n = constraint_ != nullptr || generated_tokens() < min_tokens_ ? static_cast<int32_t>(vocab_size_)
                                                                                   : sampler_.candidates_needed();
  return LogitsRequest{.top_n = top_n, .target = -1};
}

void Request::OnAdmitted(int64_t cached_tokens) {
  cached_tokens_ = cached_tokens;
  admitted_ = clock_.Now();
}

bool Request::OnRows(int64_t first_position, int64_t num_tokens, std::span<LogitsResult> logits,
                     const v1::ExpertCounters& experts) {
  AddCounters(experts, &experts_);
  v1::GenerateResponse& response = unsent_;
  size_t next = 0;
  bool ended = false;
  bool last_row_done = false;
  // Rows that are computed again after a resume are no progress.
  const bool progress = prompt_progress_ && std::min(first_position + num_tokens, prompt_tokens_) > rows_done_;
  for (int64_t position = first_position; position < first_position + num_tokens; ++position) {
    const bool last = position == static_cast<int64_t>(tokens_.size()) - 1;
    if (position == prompt_tokens_ - 1 && position >= rows_done_) prompt_done_ = clock_.Now();
    if (LogitsAt(position)) {
      if (next >= logits.size()) {
        OnFailed(Internal("the logits of position %d are missing", position));
        return true;
      }
      const LogitsResult& row = logits[next++];
      absl::Status status;
      if (position < prompt_tokens_ - 1) {
        status = OnPromptRow(position, row, &response);
      } else if (const absl::StatusOr<bool> stops = OnSampledRow(row, &response); stops.ok()) {
        ended = *stops;
      } else {
        status = stops.status();
      }
      if (!status.ok()) {
        OnFailed(status);
        return true;
      }
    }
    rows_done_ = std::max(rows_done_, position + 1);
    if (last) {
      last_row_done = true;
      break;
    }
  }
  sink_->OnProgress(cached_tokens_, std::min(rows_done_, prompt_tokens_));
  if (progress) FillProgress(first_position + num_tokens, response.mutable_prompt_progress());
  const bool full = last_row_done && generated_tokens() >= max_tokens_;
  const bool finished = ended || full;
  if (finished) {
    if (!ended) {  // otherwise the held-back text was flushed or belongs to the stop string
      StopMatcher::Result rest = stops_.Push(detokenizer_.Flush());
      response.mutable_text()->append(rest.text);
      if (!rest.stop) response.mutable_text()->append(stops_.Flush());
    }
    FillFinish(ended ? v1::Finish::STOP : v1::Finish::LENGTH, response.mutable_finish());
  }
  const bool anything = response.token_ids_size() > 0 || response.prompt_logprobs_size() > 0 || progress || finished;
  const bool waits = response.token_ids_size() > 0 && !finished && clock_.Now() < sent_ + between_messages_;
  if (anything && !waits) SendUnsent();
  if (finished) sink_->Close(absl::OkStatus());
  return finished;
}

absl::Time Request::unsent_until() const {
  return unsent_.token_ids_size() > 0 ? sent_ + 2 * between_messages_ : absl::InfiniteFuture();
}

void Request::SendUnsent() {
  v1::GenerateResponse response = std::exchange(unsent_, {});
  FillUsage(response.mutable_usage());
  if (response.token_ids_size() > 0) sent_ = clock_.Now();
  sink_->Send(std::move(response));
}

absl::Status Request::OnPromptRow(int64_t position, const LogitsResult& row, v1::GenerateResponse* response) const {
  v1::PositionLogprobs* const logprobs = response->add_prompt_logprobs();
  logprobs->set_id(tokens_[position + 1]);
  logprobs->set_logprob(row.target_logit - row.log_sum_exp);
  if (!std::isfinite(logprobs->logprob())) {
    return Internal("the log-probability at position %d is not finite", position + 1);
  }
  ASSIGN_OR_RETURN(const std::vector<Candidate> best, BestOf(row, *prompt_logprobs_));
  for (const Candidate& candidate : best) {
    v1::TokenLogprob* const top = logprobs->add_top();
    top->set_id(candidate.id);
    top->set_logprob(candidate.logit - row.log_sum_exp);
  }
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> Request::Sample(const LogitsResult& row) {
  const LogitsRow logits = row.ids.empty() ? LogitsRow::Whole(row.logits) : LogitsRow::Best(row.ids, row.logits, row.log_sum_exp);
  if (generated_tokens() < min_tokens_) return sampler_.Sample(logits, AllButEndTokens());
  if (constraint_ == nullptr || !constraint_->active()) return sampler_.Sample(logits);
  ASSIGN_OR_RETURN(const std::vector<uint64_t> allowed, constraint_->Allowed(tokenizer_.eos_ids(), stop_token_ids_));
  return sampler_.Sample(logits, allowed);
}

std::vector<uint64_t> Request::AllButEndTokens() const {
  std::vector<uint64_t> allowed((static_cast<size_t>(vocab_size_) + 63) / 64, ~uint64_t{0});
  const auto remove = [&](int32_t id) {
    if (id >= 0 && id < vocab_size_) allowed[static_cast<size_t>(id) / 64] &= ~(uint64_t{1} << (id % 64));
  };
  for (const int32_t id : tokenizer_.eos_ids()) remove(id);
  for (const int32_t id : stop_token_ids_) remove(id);
  return allowed;
}

absl::StatusOr<bool> Request::OnSampledRow(const LogitsResult& row, v1::GenerateResponse* response) {
  ASSIGN_OR_RETURN(const SampledToken sampled, Sample(row));
  sampler_.Accept(sampled.id);
  tokens_.push_back(sampled.id);
  response->add_token_ids(sampled.id);
  if (logprobs_) {
    v1::PositionLogprobs* const logprobs = response->add_logprobs();
    logprobs->set_id(sampled.id);
    logprobs->set_logprob(static_cast<float>(sampled.logprob.value_or(0)));
    for (const TokenLogprob& best : sampled.best) {
      v1::TokenLogprob* const top = logprobs->add_top();
      top->set_id(best.id);
      top->set_logprob(static_cast<float>(best.logprob));
    }
  }
  const bool constrained = constraint_ != nullptr && constraint_->active();
  const bool heeds_eos = !ignore_eos_ || constrained;
  const bool ends = (heeds_eos && tokenizer_.EndsGeneration(sampled.id)) ||
                    std::find(stop_token_ids_.begin(), stop_token_ids_.end(), sampled.id) != stop_token_ids_.end();
  // A constraint may have such a token within the output.
  const bool end_token = ends && (!constrained || constraint_->CanEnd());
  bool complete = false;
  if (constraint_ != nullptr && !end_token) {
    ASSIGN_OR_RETURN(complete, constraint_->Accept(sampled.id));
  }
  std::string piece;
  if (!end_token || render_special_) piece = detokenizer_.Push(sampled.id);
  if (end_token || complete) piece += detokenizer_.Flush();
  // Before min_tokens nothing was pushed, and so nothing is held back.
  const StopMatcher::Result shown =
      generated_tokens() < min_tokens_ ? StopMatcher::Result{.text = std::move(piece), .stop = std::nullopt} : stops_.Push(piece);
  response->mutable_text()->append(shown.text);
  matched_stop_ = shown.stop;
  if (end_token) matched_token_ = sampled.id;
  if ((end_token || complete) && !shown.stop) response->mutable_text()->append(stops_.Flush());
  return end_token || complete || shown.stop.has_value();
}

void Request::FillProgress(int64_t rows_done, v1::PromptProgress* progress) const {
  progress->set_total(static_cast<uint32_t>(prompt_tokens_));
  progress->set_cached(static_cast<uint32_t>(cached_tokens_));
  progress->set_processed(static_cast<uint32_t>(std::min(rows_done, prompt_tokens_)));
  progress->set_seconds(absl::ToDoubleSeconds(clock_.Now() - admitted_));
}

void Request::FillUsage(v1::Usage* usage) const {
  usage->set_prompt_tokens(static_cast<uint32_t>(prompt_tokens_));
  usage->set_cached_prompt_tokens(static_cast<uint32_t>(cached_tokens_));
  usage->set_generated_tokens(static_cast<uint32_t>(generated_tokens()));
}

void Request::FillFinish(v1::Finish::Reason reason, v1::Finish* finish) const {
  const absl::Time now = clock_.Now();
  finish->set_reason(reason);
  finish->set_prompt_tokens(static_cast<uint32_t>(prompt_tokens_));
  finish->set_cached_prompt_tokens(static_cast<uint32_t>(cached_tokens_));
  finish->set_generated_tokens(static_cast<uint32_t>(generated_tokens()));
  finish->set_seed(sampler_.seed());
  finish->set_queue_seconds(absl::ToDoubleSeconds(admitted_ - queued_));
  finish->set_prefill_seconds(absl::ToDoubleSeconds(prompt_done_ - admitted_));
  finish->set_decode_seconds(absl::ToDoubleSeconds(now - prompt_done_));
  *finish->mutable_experts() = experts_;
  finish->set_resumed(resumed_);
  finish->set_suspended(suspended_);
  if (matched_stop_) {
    finish->set_matched_stop(stop_strings_[static_cast<size_t>(*matched_stop_)]);
  } else if (matched_token_) {
    finish->set_matched_token_id(static_cast<uint32_t>(*matched_token_));
  }
}

void Request::OnFailed(const absl::Status& status) {
  if (unsent_.token_ids_size() > 0) SendUnsent();
  sink_->Close(status);
}

}  // namespace ferry
