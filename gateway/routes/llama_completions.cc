#include "gateway/routes/llama_completions.h"

#include <optional>
#include <utility>

#include "gateway/errors.h"
#include "gateway/http/sse.h"

namespace ferry {
namespace {

// The body in the words of /v1/completions, whose reader does the rest. Of what both know, these differ: the default of n_predict
// is no limit, logprobs are called n_probs, and a prompt may be an object.
absl::StatusOr<Json> TranslatedBody(const Json& body) {
  const JsonFields fields(body);
  for (const char* const name : {"n", "n_cmpl", "best_of"}) {
    ASSIGN_OR_RETURN(const auto count, fields.Integer(name, 0, kMaxGenerationsOfRequest));
    if (count.value_or(1) > 1) {
      return FieldError(name,
                        std::string(name) + " is not supported here: send the prompt several times, or ask /v1/completions");
    }
  }
  ASSIGN_OR_RETURN(const auto probabilities, fields.Integer("n_probs", 0, 20));
  Json translated = body;
  for (const char* const name : {"n", "best_of", "echo", "logprobs", "stream_options"}) translated.erase(name);
  if (probabilities.value_or(0) > 0) translated["logprobs"] = *probabilities;
  if (!fields.Has("n_predict") && !fields.Has("max_tokens")) translated["n_predict"] = -1;
  const auto unwrap = [](Json* prompt) {
    const auto text = prompt->is_object() ? prompt->find("prompt_string") : prompt->end();
    if (prompt->is_object() && text != prompt->end()) *prompt = Json(*text);
  };
  if (const auto prompt = translated.find("prompt"); prompt != translated.end()) {
    unwrap(&*prompt);
    for (size_t i = 0; prompt->is_array() && i < prompt->size(); ++i) unwrap(&(*prompt)[i]);
  }
  return translated;
}

}  // namespace

Json SettingsOf(const v1::GenerateRequest& request, bool stream) {
  const v1::Sampling& sampling = request.sampling();
  const auto value_or = [](bool given, double value, double otherwise) { return given ? value : otherwise; };
  return {{"n_predict", request.has_max_tokens() ? Json(request.max_tokens()) : Json(-1)},
          {"seed", sampling.has_seed() ? Json(sampling.seed()) : Json(-1)},
          {"temperature", value_or(sampling.has_temperature(), sampling.temperature(), 0.8)},
          {"top_k", sampling.has_top_k() ? Json(sampling.top_k()) : Json(40)},
          {"top_p", value_or(sampling.has_top_p(), sampling.top_p(), 0.95)},
          {"min_p", value_or(sampling.has_min_p(), sampling.min_p(), 0.05)},
          {"repeat_penalty", value_or(sampling.has_repetition_penalty(), sampling.repetition_penalty(), 1)},
          {"presence_penalty", sampling.presence_penalty()},
          {"frequency_penalty", sampling.frequency_penalty()},
          {"stop", Json(std::vector<std::string>(request.stop().begin(), request.stop().end()))},
          {"ignore_eos", request.ignore_eos()},
          {"n_probs", request.logprobs()},
          {"stream", stream}};
}

namespace {

Json BytesOf(std::string_view text) {
  Json bytes = Json::array();
  for (const char byte : text) bytes.push_back(static_cast<unsigned char>(byte));
  return bytes;
}

class LlamaCompletionWriter final : public AnswerWriter {
 public:
  LlamaCompletionWriter(LlamaCompletion completion, Model model)
      : completion_(std::move(completion)), model_(std::move(model)), answers_(completion_.request.prompts.size()) {}

  bool streams() const override { return completion_.request.stream; }

  std::string OnMessage(size_t index, const v1::GenerateResponse& message) override {
    Answer& answer = answers_[index];
    std::string progress;
    if (message.has_prompt_progress()) {
      answer.prompt_tokens = message.prompt_progress().total();
      Json chunk = Chunk(index, "");
      chunk["prompt_progress"] = ProgressOf(message.prompt_progress());
      progress = SseEvent(Dump(chunk));
    }
    answer.new_line = answer.new_line || message.text().find('\n') != std::string::npos;
    answer.generated += static_cast<uint32_t>(message.token_ids_size());
    for (const uint32_t id : message.token_ids()) answer.tokens.push_back(id);
    for (const v1::PositionLogprobs& position : message.logprobs()) answer.probabilities.push_back(Probability(position));
    if (message.has_finish()) answer.finish = message.finish();
    answer.text += message.text();
    if (!streams()) return {};
    if (!message.text().empty() || !answer.probabilities.empty()) {
      Json chunk = Chunk(index, std::exchange(answer.text, {}));
      chunk["tokens"] = std::exchange(answer.tokens, Json::array());
      AddProbabilities(&answer, &chunk);
      progress += SseEvent(Dump(chunk));
    }
    if (message.has_finish()) progress += SseEvent(Dump(Last(index)));
    return progress;
  }

  std::string End() override {
    if (streams()) return {};
    if (!completion_.several) return Dump(Last(0));
    Json all = Json::array();
    for (size_t i = 0; i < answers_.size(); ++i) all.push_back(Last(i));
    return Dump(all);
  }

  std::string OnError(const absl::Status& status) override { return SseEvent(Dump(ErrorBody(ApiForm::kOpenAi, status))); }

 private:
  struct Answer {
    std::string text;                                            // not yet sent
    Json tokens = Json::array(), probabilities = Json::array();  // not yet sent
    uint32_t prompt_tokens = 0, generated = 0;
    bool new_line = false;
    std::optional<v1::Finish> finish;
  };

  Json Chunk(size_t index, const std::string& text) const {
    const Answer& answer = answers_[index];
    Json chunk = {{"index", index}, {"content", text}, {"stop", false}, {"id_slot", -1}, {"tokens_predicted", answer.generated}};
    if (answer.prompt_tokens > 0) chunk["tokens_evaluated"] = answer.prompt_tokens;  // known with return_progress alone
    return chunk;
  }

  Json TokenJson(uint32_t id, float logprob) const {
    const std::string_view piece = model_->tokens.Of(id);
    return {{"id", id}, {"token", piece}, {"bytes", BytesOf(piece)}, {"logprob", logprob}};
  }
  Json Probability(const v1::PositionLogprobs& position) const {
    Json json = TokenJson(position.id(), position.logprob());
    json["top_logprobs"] = Json::array();
    for (const v1::TokenLogprob& other : position.top()) json["top_logprobs"].push_back(TokenJson(other.id(), other.logprob()));
    return json;
  }
  static void AddProbabilities(Answer* answer, Json* to) {
    if (!answer->probabilities.empty()) (*to)["completion_probabilities"] = std::exchange(answer->probabilities, Json::array());
  }

  // The whole answer, or the last event of a stream.
  Json Last(size_t index) {
    Answer& answer = answers_[index];
    const v1::Finish finish = answer.finish.value_or(v1::Finish());
    const char* const stop_type = finish.reason() == v1::Finish::LENGTH ? "limit" : finish.has_matched_stop() ? "word" : "eos";
    Json json = {{"index", index},
                 {"content", answer.text},
                 {"tokens", completion_.return_tokens ? answer.tokens : Json::array()},
                 {"id_slot", -1},
                 {"stop", true},
                 {"model", model_->info.name()},
                 {"tokens_predicted", finish.generated_tokens()},
                 {"tokens_evaluated", finish.prompt_tokens()},
                 {"generation_settings", completion_.settings},
                 {"prompt", completion_.prompts[index]},
                 {"has_new_line", answer.new_line},
                 {"truncated", false},
                 {"stop_type", stop_type},
                 {"stopping_word", finish.matched_stop()},
                 {"tokens_cached", finish.cached_prompt_tokens()},
                 {"timings", TimingsOf(finish)}};
    json["generation_settings"]["seed"] = finish.seed();
    AddProbabilities(&answer, &json);
    return json;
  }

  const LlamaCompletion completion_;
  const Model model_;
  std::vector<Answer> answers_;
};

}  // namespace

absl::StatusOr<LlamaCompletion> LlamaCompletionOf(const Json& body) {
  ASSIGN_OR_RETURN(const Json translated, TranslatedBody(body));
  LlamaCompletion completion;
  ASSIGN_OR_RETURN(completion.request, CompletionRequestOf(translated));
  ASSIGN_OR_RETURN(const auto return_tokens, JsonFields(body).Bool("return_tokens"));
  completion.return_tokens = return_tokens.value_or(false);
  const Json& prompt = translated["prompt"];
  completion.several = prompt.is_array() && !prompt.empty() && !prompt.front().is_number();
  completion.prompts = completion.several ? prompt : Json::array({prompt});
  completion.settings = SettingsOf(completion.request.prompts.at(0), completion.request.stream);
  return completion;
}

std::unique_ptr<AnswerWriter> NewLlamaCompletionWriter(LlamaCompletion completion, Model model) {
  return std::make_unique<LlamaCompletionWriter>(std::move(completion), std::move(model));
}

}  // namespace ferry
