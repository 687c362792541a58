#include "gateway/routes/completions.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "gateway/http/sse.h"
#include "gateway/json/repeated_event.h"
#include "gateway/json/token_ids.h"
#include "gateway/routes/output_rules.h"
#include "gateway/routes/routes.h"
#include "gateway/routes/sampling_fields.h"

namespace ferry {
namespace {

// A string, an array of strings, an array of ids or an array of such arrays.
absl::Status ReadPrompts(const JsonFields& fields, const v1::GenerateRequest& common, CompletionRequest* request) {
  const Json* const prompt = fields.Find("prompt");
  if (prompt == nullptr) return FieldError("prompt", "prompt is missing: want a string, token ids, or an array of them");
  const auto add = [&](const Json& value, const std::string& name) -> absl::Status {
    v1::GenerateRequest generation = common;
    if (value.is_string()) {
      generation.set_text(value.get<std::string>());
    } else {
      ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, TokenIdsOf(value, name));
      generation.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
    }
    request->prompts.push_back(std::move(generation));
    return absl::OkStatus();
  };
  const bool several = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  if (!several) return add(*prompt, "prompt");
  if (prompt->size() > kMaxGenerationsOfRequest) {
    return FieldError("prompt",
                      absl::StrFormat("prompt has %d prompts, want at most %d", prompt->size(), kMaxGenerationsOfRequest));
  }
  for (size_t i = 0; i < prompt->size(); ++i) RETURN_IF_ERROR(add((*prompt)[i], absl::StrFormat("prompt[%d]", i)));
  return absl::OkStatus();
}

absl::Status ReadLogprobs(const JsonFields& fields, CompletionRequest* request, v1::GenerateRequest* common) {
  const Json* const value = fields.Find("logprobs");
  if (value == nullptr || *value == false) return absl::OkStatus();
  int64_t count = 1;  // of `true`, which some clients send
  if (*value != true) {
    ASSIGN_OR_RETURN(const auto number, fields.Integer("logprobs", 0, 20));
    count = *number;
  }
  request->logprobs = true;
  common->set_logprobs(static_cast<uint32_t>(count));
  if (request->echo) common->set_prompt_logprobs(static_cast<uint32_t>(count));
  return absl::OkStatus();
}

absl::Status ReadShape(const JsonFields& fields, CompletionRequest* request) {
  ASSIGN_OR_RETURN(const auto n, fields.Integer("n", 1, kMaxGenerationsOfRequest));
  request->n = n.value_or(1);
  ASSIGN_OR_RETURN(const auto best_of, fields.Integer("best_of", 1, kMaxGenerationsOfRequest));
  if (best_of && *best_of != request->n) return FieldError("best_of", "best_of is not supported unless it equals n");
  ASSIGN_OR_RETURN(const auto stream, fields.Bool("stream"));
  request->stream = stream.value_or(false);
  ASSIGN_OR_RETURN(const auto echo, fields.Bool("echo"));
  request->echo = echo.value_or(false);
  ASSIGN_OR_RETURN(const Json* const options, fields.Object("stream_options"));
  if (options != nullptr) {
    ASSIGN_OR_RETURN(const auto usage, JsonFields(*options, "stream_options.").Bool("include_usage"));
    request->include_usage = usage.value_or(false);
  }
  return absl::OkStatus();
}

// The JSON of one choice's logprobs, as the tokens come.
class LogprobsJson {
 public:
  void Add(const v1::PositionLogprobs& position, const TokenBytes& tokens) {
    const std::string_view piece = tokens.Of(position.id());
    tokens_.push_back(piece);
    logprobs_.push_back(position.logprob());
    Json top = Json::object();
    for (const v1::TokenLogprob& other : position.top()) top[std::string(tokens.Of(other.id()))] = other.logprob();
    top_.push_back(std::move(top));
    offsets_.push_back(offset_);
    offset_ += piece.size();
  }
  // A prompt's first token has nothing before it from which it could follow.
  void AddFirst(const std::string& piece) {
    tokens_.push_back(piece);
    logprobs_.push_back(nullptr);
    top_.push_back(nullptr);
    offsets_.push_back(offset_);
    offset_ += piece.size();
  }
  bool empty() const { return tokens_.empty(); }
  // The text added since the last call.
  Json Take() {
    return {{"tokens", std::exchange(tokens_, Json::array())},
            {"token_logprobs", std::exchange(logprobs_, Json::array())},
            {"top_logprobs", std::exchange(top_, Json::array())},
            {"text_offset", std::exchange(offsets_, Json::array())}};
  }

 private:
  Json tokens_ = Json::array(), logprobs_ = Json::array(), top_ = Json::array(), offsets_ = Json::array();
  size_t offset_ = 0;
};

class CompletionWriter final : public AnswerWriter {
 public:
  CompletionWriter(const CompletionRequest& request, AnswerIdentity identity, Model model)
      : identity_(std::move(identity)),
        model_(std::move(model)),
        n_(static_cast<size_t>(request.n)),
        stream_(request.stream),
        include_usage_(request.include_usage),
        logprobs_(request.logprobs),
        choices_(request.prompts.size() * n_) {
    for (size_t i = 0; request.echo && i < choices_.size(); ++i) {
      choices_[i].text = request.echoed[i / n_];
      choices_[i].prompt_bytes = choices_[i].text.size();
    }
  }

  bool streams() const override { return stream_; }

  std::string OnMessage(size_t index, const v1::GenerateResponse& message) override {
    std::string progress;
    if (stream_ && message.has_prompt_progress()) {
      Json chunk = Envelope();
      chunk["choices"] = Json::array({{{"index", index}, {"text", ""}, {"logprobs", nullptr}, {"finish_reason", nullptr}}});
      chunk["prompt_progress"] = ProgressOf(message.prompt_progress());
      progress = SseEvent(Dump(chunk));
    }
    return progress + OnTokens(index, message);
  }

  std::string End() override {
    if (stream_) {
      std::string rest;
      if (include_usage_) {
        Json chunk = Envelope();
        chunk["choices"] = Json::array();
        chunk["usage"] = Usage();
        rest = SseEvent(Dump(chunk));
      }
      return rest + SseEvent("[DONE]");
    }
    Json answer = Envelope();
    answer["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) answer["choices"].push_back(ChoiceJson(i));
    answer["usage"] = Usage();
    if (choices_.size() == 1 && choices_[0].finish) answer["timings"] = TimingsOf(*choices_[0].finish);
    return Dump(answer);
  }

  std::string OnError(const absl::Status& status) override { return SseEvent(Dump(ErrorBody(ApiForm::kOpenAi, status))); }

 private:
  struct Choice {
    std::string text;                          // not yet sent
    size_t prompt_bytes = 0;                   // of an echoed prompt
    std::vector<v1::PositionLogprobs> prompt;  // until the first generated token
    LogprobsJson logprobs;
    std::optional<v1::Finish> finish;
    RepeatedEvent pieces;  // of the text, without logprobs

    // The engine's begin with the second token: what they leave of the text is the first, which is nothing for a bos that was
    // added.
    void AddPrompt(const TokenBytes& tokens) {
      size_t others = 0;
      for (const v1::PositionLogprobs& position : prompt) others += tokens.Of(position.id()).size();
      logprobs.AddFirst(text.substr(0, prompt_bytes - std::min(prompt_bytes, others)));
      for (const v1::PositionLogprobs& position : prompt) logprobs.Add(position, tokens);
      prompt.clear();
    }
  };

  std::string OnTokens(size_t index, const v1::GenerateResponse& message) {
    Choice& choice = choices_[index];
    choice.prompt.insert(choice.prompt.end(), message.prompt_logprobs().begin(), message.prompt_logprobs().end());
    if (message.token_ids_size() == 0 && !message.has_finish()) return {};
    choice.text += message.text();
    if (!choice.prompt.empty()) choice.AddPrompt(model_->tokens);
    for (const v1::PositionLogprobs& position : message.logprobs()) choice.logprobs.Add(position, model_->tokens);
    if (message.has_finish()) choice.finish = message.finish();
    const bool anything = !choice.text.empty() || !choice.logprobs.empty() || message.has_finish();
    if (!stream_ || !anything) return {};
    std::string text = std::exchange(choice.text, {});
    if (logprobs_ || message.has_finish()) return Chunk(index, std::move(text));
    return choice.pieces.Of(text, [&](const std::string& piece) { return Chunk(index, piece); });
  }

  std::string Chunk(size_t index, std::string text) {
    Choice& choice = choices_[index];
    choice.text = std::move(text);
    Json chunk = Envelope();
    chunk["choices"] = Json::array({ChoiceJson(index)});
    if (choice.finish) chunk["timings"] = TimingsOf(*choice.finish);
    choice.text.clear();
    return SseEvent(Dump(chunk));
  }

  Json Envelope() const {
    return {{"id", identity_.id}, {"object", "text_completion"}, {"created", identity_.created}, {"model", identity_.model}};
  }
  Json ChoiceJson(size_t index) {
    Choice& choice = choices_[index];
    return {{"index", index},
            {"text", choice.text},
            {"logprobs", logprobs_ ? choice.logprobs.Take() : Json()},
            {"finish_reason", choice.finish ? Json(FinishReasonOf(*choice.finish)) : Json()},
            {"stop_reason", choice.finish ? StopReasonOf(*choice.finish) : Json()}};
  }
  Json Usage() const {
    uint64_t prompt = 0, cached = 0, generated = 0;
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (!choices_[i].finish) continue;
      if (i % n_ == 0) prompt += choices_[i].finish->prompt_tokens(), cached += choices_[i].finish->cached_prompt_tokens();
      generated += choices_[i].finish->generated_tokens();
    }
    return UsageOf(prompt, cached, generated);
  }

  const AnswerIdentity identity_;
  const Model model_;
  const size_t n_;
  const bool stream_, include_usage_, logprobs_;
  std::vector<Choice> choices_;
};

}  // namespace

absl::StatusOr<CompletionRequest> CompletionRequestOf(const Json& body) {
  const JsonFields fields(body);
  CompletionRequest request;
  v1::GenerateRequest common;
  RETURN_IF_ERROR(ReadShape(fields, &request));
  RETURN_IF_ERROR(ReadLogprobs(fields, &request, &common));
  RETURN_IF_ERROR(ReadSamplingFields(fields, &common));
  ASSIGN_OR_RETURN(const auto progress, fields.Bool("return_progress"));
  common.set_prompt_progress(progress.value_or(false) && request.stream);
  ASSIGN_OR_RETURN(std::optional<v1::Constraint> constraint,
                   OutputConstraintOf(fields, fields.Find("response_format"), "response_format"));
  if (constraint) *common.mutable_constraint() = *std::move(constraint);
  common.set_max_tokens(kDefaultCompletionTokens);
  if (fields.Has("max_tokens") || fields.Has("n_predict") || fields.Has("max_completion_tokens")) {
    common.clear_max_tokens();
    RETURN_IF_ERROR(ReadMaxTokens(fields, {"max_tokens", "max_completion_tokens", "n_predict"}, &common));
  }
  RETURN_IF_ERROR(ReadPrompts(fields, common, &request));
  if (request.prompts.size() * static_cast<size_t>(request.n) > kMaxGenerationsOfRequest) {
    return FieldError("n", absl::StrFormat("n is %d for %d prompts, want at most %d completions together", request.n,
                                           request.prompts.size(), kMaxGenerationsOfRequest));
  }
  return request;
}

std::vector<v1::GenerateRequest> GenerationsOf(const CompletionRequest& request) {
  std::vector<v1::GenerateRequest> generations;
  for (const v1::GenerateRequest& prompt : request.prompts) {
    for (int64_t i = 0; i < request.n; ++i) {
      generations.push_back(prompt);
      v1::Sampling* const sampling = generations.back().mutable_sampling();
      if (sampling->has_seed()) sampling->set_seed(sampling->seed() + static_cast<uint64_t>(i));
    }
  }
  return generations;
}

std::string RandomId(const std::string& prefix) {
  constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string id = prefix;
  for (int i = 0; i < 24; ++i) id.push_back(kLetters[random() % kLetters.size()]);
  return id;
}

AnswerIdentity NewIdentity(const std::string& prefix, const std::string& model) {
  return {.id = RandomId(prefix), .model = model, .created = absl::ToUnixSeconds(absl::Now())};
}

std::unique_ptr<AnswerWriter> NewCompletionWriter(const CompletionRequest& request, AnswerIdentity identity, Model model) {
  return std::make_unique<CompletionWriter>(request, std::move(identity), std::move(model));
}

Json UsageOf(uint64_t prompt_tokens, uint64_t cached_tokens, uint64_t generated_tokens) {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", generated_tokens},
          {"total_tokens", prompt_tokens + generated_tokens},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens}}}};
}

Json TimingsOf(const v1::Finish& finish) {
  const auto rates = [](Json* timings, const char* stem, double count, double seconds) {
    const std::string name = stem;
    (*timings)[name + "_ms"] = seconds * 1e3;
    (*timings)[name + "_per_token_ms"] = count > 0 ? seconds * 1e3 / count : 0;
    (*timings)[name + "_per_second"] = seconds > 0 ? count / seconds : 0;
  };
  const uint32_t computed = finish.prompt_tokens() - std::min(finish.prompt_tokens(), finish.cached_prompt_tokens());
  Json timings = {{"cache_n", finish.cached_prompt_tokens()}, {"prompt_n", computed}, {"predicted_n", finish.generated_tokens()}};
  rates(&timings, "prompt", computed, finish.prefill_seconds());
  rates(&timings, "predicted", finish.generated_tokens(), finish.decode_seconds());
  return timings;
}

Json ProgressOf(const v1::PromptProgress& progress) {
  return {{"total", progress.total()},
          {"cache", progress.cached()},
          {"processed", progress.processed()},
          {"time_ms", static_cast<int64_t>(progress.seconds() * 1e3)}};
}

Json StopReasonOf(const v1::Finish& finish) { return finish.has_matched_stop() ? Json(finish.matched_stop()) : Json(); }

const char* FinishReasonOf(const v1::Finish& finish) { return finish.reason() == v1::Finish::LENGTH ? "length" : "stop"; }

}  // namespace ferry
