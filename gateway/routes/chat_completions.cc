#include "gateway/routes/chat_completions.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "gateway/http/sse.h"
#include "gateway/json/repeated_event.h"
#include "gateway/routes/output_rules.h"
#include "gateway/routes/sampling_fields.h"

namespace ferry {
namespace {

absl::Status RefuseUnsupportedOfChat(const JsonFields& fields) {
  for (const char* const name : {"functions", "function_call", "audio", "web_search_options", "chat_template",
                                 "continue_final_message", "documents", "reasoning_budget"}) {
    const Json* const value = fields.Find(name);
    const bool asks = value != nullptr && *value != false && !(value->is_structured() && value->empty());
    if (asks) return FieldError(name, std::string(name) + " is not supported");
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> modalities, fields.Strings("modalities", 8));
  for (const std::string& modality : modalities) {
    if (modality != "text") return FieldError("modalities", "modalities has '" + modality + "', only text is supported");
  }
  return absl::OkStatus();
}

// Tools as the template gets them.
absl::StatusOr<Json> ToolsOf(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const Json* const tools, fields.Array("tools"));
  Json functions = Json::array();
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    const std::string where = absl::StrFormat("tools[%d]", i);
    if (!tool.is_object() || tool.value("type", Json()) != "function") {
      return FieldError(where + ".type", where + ".type is not \"function\", the only type that is supported");
    }
    ASSIGN_OR_RETURN(const Json* const function, JsonFields(tool, where + ".").Object("function"));
    if (function == nullptr) return FieldError(where + ".function", where + ".function is missing");
    ASSIGN_OR_RETURN(const auto name, JsonFields(*function, where + ".function.").String("name"));
    if (!name || name->empty()) return FieldError(where + ".function.name", where + ".function.name is missing");
    functions.push_back(tool);
  }
  return functions;
}

absl::Status ReadLogprobs(const JsonFields& fields, ChatCompletion* completion) {
  ASSIGN_OR_RETURN(const auto logprobs, fields.Bool("logprobs"));
  ASSIGN_OR_RETURN(const auto top, fields.Integer("top_logprobs", 0, 20));
  if (top.value_or(0) > 0 && !logprobs.value_or(false)) {
    return FieldError("top_logprobs", "top_logprobs is given without logprobs: true");
  }
  completion->shape.logprobs = logprobs.value_or(false);
  if (completion->shape.logprobs) completion->plan.generation.set_logprobs(static_cast<uint32_t>(top.value_or(0)));
  return absl::OkStatus();
}

absl::Status ReadShape(const JsonFields& fields, ChatCompletion* completion) {
  ASSIGN_OR_RETURN(const auto n, fields.Integer("n", 1, kMaxGenerationsOfRequest));
  ASSIGN_OR_RETURN(const auto stream, fields.Bool("stream"));
  ASSIGN_OR_RETURN(const auto parallel, fields.Bool("parallel_tool_calls"));
  completion->plan.n = n.value_or(1);
  completion->plan.answer.stream = stream.value_or(false);
  completion->plan.answer.parallel_tool_calls = parallel.value_or(true);
  completion->shape.n = static_cast<size_t>(completion->plan.n);
  completion->shape.stream = completion->plan.answer.stream;
  ASSIGN_OR_RETURN(const Json* const options, fields.Object("stream_options"));
  if (options != nullptr) {
    ASSIGN_OR_RETURN(const auto usage, JsonFields(*options, "stream_options.").Bool("include_usage"));
    completion->shape.include_usage = usage.value_or(false);
  }
  return absl::OkStatus();
}

Json LogprobJson(std::string_view piece, float logprob) {
  Json bytes = Json::array();
  for (const char c : piece) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", piece}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
}

const char* ReasonName(ChatFinish::Reason reason) {
  switch (reason) {
    case ChatFinish::Reason::kLength:
      return "length";
    case ChatFinish::Reason::kToolCalls:
      return "tool_calls";
    case ChatFinish::Reason::kStop:
      return "stop";
  }
  return "stop";
}

class ChatCompletionWriter final : public ChatWriter {
 public:
  ChatCompletionWriter(const ChatCompletionShape& shape, AnswerIdentity identity, Model model)
      : shape_(shape), identity_(std::move(identity)), model_(std::move(model)), choices_(shape.n) {}

  std::string OnLogprobs(size_t index, const v1::PositionLogprobs& position) override {
    Json entry = LogprobJson(model_->tokens.Of(position.id()), position.logprob());
    entry["top_logprobs"] = Json::array();
    for (const v1::TokenLogprob& other : position.top())
      entry["top_logprobs"].push_back(LogprobJson(model_->tokens.Of(other.id()), other.logprob()));
    choices_[index].logprobs.push_back(std::move(entry));
    return {};
  }

  std::string OnProgress(size_t index, const v1::PromptProgress& progress) override {
    if (!shape_.stream) return {};
    Json chunk = Envelope("chat.completion.chunk");
    chunk["choices"] = Json::array({{{"index", index}, {"delta", Json::object()}, {"finish_reason", nullptr}}});
    chunk["prompt_progress"] = ProgressOf(progress);
    return Begin(index) + SseEvent(Dump(chunk));
  }

  std::string OnEvent(size_t index, const OutputEvent& event) override {
    Choice& choice = choices_[index];
    Json delta = Json::object();
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        choice.reasoning += event.text;
        return Piece(index, &choice.reasoning_pieces, "reasoning_content", event.text);
      case OutputEvent::Kind::kContent:
        choice.content += event.text;
        return Piece(index, &choice.content_pieces, "content", event.text);
      case OutputEvent::Kind::kToolCallStart: {
        Json call = {{"id", event.id.empty() ? RandomId("call_") : event.id},
                     {"type", "function"},
                     {"function", {{"name", event.name}, {"arguments", ""}}}};
        choice.calls.push_back(call);
        delta["tool_calls"] = Json::array({Indexed(choice.calls.size() - 1, std::move(call))});
        break;
      }
      case OutputEvent::Kind::kToolCallArguments: {
        if (choice.calls.empty()) return {};
        Json& arguments = choice.calls.back()["function"]["arguments"];
        arguments = arguments.get<std::string>() + event.text;
        delta["tool_calls"] = Json::array({Indexed(choice.calls.size() - 1, {{"function", {{"arguments", event.text}}}})});
        break;
      }
      case OutputEvent::Kind::kToolCallEnd:
        return {};
    }
    return shape_.stream ? Begin(index) + Chunk(index, std::move(delta), nullptr) : std::string();
  }

  std::string OnFinish(size_t index, const ChatFinish& finish) override {
    choices_[index].finish = finish;
    if (!shape_.stream) return {};
    return Begin(index) + Chunk(index, Json::object(), ReasonName(finish.reason));
  }

  std::string End() override {
    if (shape_.stream) {
      std::string rest;
      if (shape_.include_usage) {
        Json chunk = Envelope("chat.completion.chunk");
        chunk["choices"] = Json::array();
        chunk["usage"] = Usage();
        rest = SseEvent(Dump(chunk));
      }
      return rest + SseEvent("[DONE]");
    }
    Json answer = Envelope("chat.completion");
    answer["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) answer["choices"].push_back(ChoiceJson(i));
    answer["usage"] = Usage();
    if (choices_.size() == 1 && choices_[0].finish && choices_[0].finish->engine) {
      answer["timings"] = TimingsOf(*choices_[0].finish->engine);
    }
    return Dump(answer);
  }

  std::string OnError(const absl::Status& status) override { return SseEvent(Dump(ErrorBody(ApiForm::kOpenAi, status))); }

 private:
  struct Choice {
    bool begun = false;
    std::string content, reasoning;
    Json calls = Json::array(), logprobs = Json::array();  // logprobs: not yet sent
    std::optional<ChatFinish> finish;
    RepeatedEvent content_pieces, reasoning_pieces;  // without logprobs
  };

  static Json Indexed(size_t index, Json call) {
    Json indexed = {{"index", index}};
    indexed.update(call);
    return indexed;
  }
  Json Envelope(const char* object) const {
    return {{"id", identity_.id}, {"object", object}, {"created", identity_.created}, {"model", identity_.model}};
  }
  // The role comes first, in a chunk of its own.
  std::string Begin(size_t index) {
    if (std::exchange(choices_[index].begun, true)) return {};
    Json chunk = Envelope("chat.completion.chunk");
    chunk["choices"] = Json::array({{{"index", index},
                                     {"delta", {{"role", "assistant"}, {"content", nullptr}}},
                                     {"logprobs", nullptr},
                                     {"finish_reason", nullptr}}});
    return SseEvent(Dump(chunk));
  }
  std::string Piece(size_t index, RepeatedEvent* pieces, const char* name, const std::string& text) {
    if (!shape_.stream) return {};
    const auto make = [&](const std::string& piece) { return Chunk(index, {{name, piece}}, nullptr); };
    return Begin(index) + (shape_.logprobs ? make(text) : pieces->Of(text, make));
  }
  Json TakeLogprobs(size_t index) {
    Choice& choice = choices_[index];
    if (!shape_.logprobs || choice.logprobs.empty()) return nullptr;
    return {{"content", std::exchange(choice.logprobs, Json::array())}};
  }
  std::string Chunk(size_t index, Json delta, const char* finish_reason) {
    Json chunk = Envelope("chat.completion.chunk");
    chunk["choices"] = Json::array({{{"index", index},
                                     {"delta", std::move(delta)},
                                     {"logprobs", TakeLogprobs(index)},
                                     {"finish_reason", finish_reason == nullptr ? Json() : Json(finish_reason)}}});
    if (finish_reason != nullptr) chunk["choices"][0]["stop_reason"] = StopReason(index);
    const std::optional<ChatFinish>& finish = choices_[index].finish;
    if (finish_reason != nullptr && finish && finish->engine) chunk["timings"] = TimingsOf(*finish->engine);
    return SseEvent(Dump(chunk));
  }
  Json ChoiceJson(size_t index) {
    Choice& choice = choices_[index];
    Json message = {{"role", "assistant"}};
    message["content"] = choice.content.empty() && !choice.calls.empty() ? Json() : Json(choice.content);
    if (!choice.reasoning.empty()) message["reasoning_content"] = choice.reasoning;
    if (!choice.calls.empty()) message["tool_calls"] = choice.calls;
    return {{"index", index},
            {"message", std::move(message)},
            {"logprobs", TakeLogprobs(index)},
            {"finish_reason", choice.finish ? Json(ReasonName(choice.finish->reason)) : Json()},
            {"stop_reason", StopReason(index)}};
  }
  Json StopReason(size_t index) const {
    const std::optional<ChatFinish>& finish = choices_[index].finish;
    return finish && finish->matched_stop ? Json(*finish->matched_stop) : Json();
  }
  Json Usage() const {
    uint64_t prompt = 0, cached = 0, generated = 0, reasoning = 0;
    for (const Choice& choice : choices_) {
      if (!choice.finish) continue;
      prompt = choice.finish->prompt_tokens;  // the same of all
      cached = std::max(cached, choice.finish->cached_tokens);
      generated += choice.finish->generated_tokens;
      reasoning += choice.finish->reasoning_tokens;
    }
    Json usage = UsageOf(prompt, cached, generated);
    usage["completion_tokens_details"] = {{"reasoning_tokens", reasoning}};
    return usage;
  }

  const ChatCompletionShape shape_;
  const AnswerIdentity identity_;
  const Model model_;
  std::vector<Choice> choices_;
};

}  // namespace

absl::StatusOr<ChatRequest> ChatRequestOf(const JsonFields& fields, const ToolChoice& choice) {
  ChatRequest chat;
  ASSIGN_OR_RETURN(const Json* const messages, fields.Array("messages"));
  if (messages == nullptr || messages->empty()) return FieldError("messages", "messages is missing: want at least one message");
  chat.messages = *messages;
  ASSIGN_OR_RETURN(chat.tools, ToolsOf(fields));
  RETURN_IF_ERROR(KeepChosenTools(choice, &chat.tools));
  if (const Json* const format = fields.Find("response_format"); format != nullptr) chat.response_format = *format;
  ASSIGN_OR_RETURN(const Json* const kwargs, fields.Object("chat_template_kwargs"));
  if (kwargs != nullptr) chat.template_kwargs = *kwargs;
  ASSIGN_OR_RETURN(chat.reasoning_effort, fields.String("reasoning_effort"));
  ASSIGN_OR_RETURN(const auto generation_prompt, fields.Bool("add_generation_prompt"));
  chat.add_generation_prompt = generation_prompt.value_or(true);
  chat.now = absl::Now();
  return chat;
}

absl::StatusOr<ChatCompletion> ChatCompletionOf(const Json& body) {
  const JsonFields fields(body);
  ChatCompletion completion;
  RETURN_IF_ERROR(RefuseUnsupportedOfChat(fields));
  ASSIGN_OR_RETURN(const ToolChoice choice, ToolChoiceOf(fields));
  ASSIGN_OR_RETURN(completion.plan.chat, ChatRequestOf(fields, choice));
  RETURN_IF_ERROR(ReadShape(fields, &completion));
  v1::GenerateRequest& generation = completion.plan.generation;
  RETURN_IF_ERROR(ReadSamplingFields(fields, &generation));
  ASSIGN_OR_RETURN(const auto progress, fields.Bool("return_progress"));
  generation.set_prompt_progress(progress.value_or(false) && completion.shape.stream);
  // Stop strings are looked for in the content, not in reasoning and calls.
  completion.plan.answer.stops.assign(generation.stop().begin(), generation.stop().end());
  generation.clear_stop();
  ASSIGN_OR_RETURN(std::optional<v1::Constraint> content,
                   OutputConstraintOf(fields, fields.Find("response_format"), "response_format"));
  ASSIGN_OR_RETURN(completion.plan.rule, AnswerRuleOf(choice, completion.plan.chat.tools,
                                                      completion.plan.answer.parallel_tool_calls, std::move(content)));
  RETURN_IF_ERROR(ReadMaxTokens(fields, {"max_completion_tokens", "max_tokens", "n_predict"}, &generation));
  RETURN_IF_ERROR(ReadLogprobs(fields, &completion));
  return completion;
}

std::unique_ptr<ChatWriter> NewChatCompletionWriter(const ChatCompletionShape& shape, AnswerIdentity identity, Model model) {
  return std::make_unique<ChatCompletionWriter>(shape, std::move(identity), std::move(model));
}

}  // namespace ferry
