// Answers in the form of /v1/responses: output items, each added, filled and done, every event with its number.

#include <utility>

#include "gateway/http/sse.h"
#include "gateway/routes/responses.h"

namespace ferry {
namespace {

class ResponsesWriter final : public ChatWriter {
 public:
  ResponsesWriter(const ResponseEcho& echo, AnswerIdentity identity) : echo_(echo), identity_(std::move(identity)) {}

  std::string OnEvent(size_t, const OutputEvent& event) override {
    std::string stream = Begin();
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        stream += Open(Item::kReasoning, {});
        text_ += event.text;
        return stream + Part("response.reasoning_text.delta", {{"delta", event.text}});
      case OutputEvent::Kind::kContent:
        stream += Open(Item::kMessage, {});
        text_ += event.text;
        return stream + Part("response.output_text.delta", {{"delta", event.text}, {"logprobs", Json::array()}});
      case OutputEvent::Kind::kToolCallStart:
        stream += Close("completed");
        return stream + Open(Item::kCall, event);
      case OutputEvent::Kind::kToolCallArguments:
        if (open_ != Item::kCall) return stream;
        text_ += event.text;
        return stream + Of("response.function_call_arguments.delta", {{"delta", event.text}});
      case OutputEvent::Kind::kToolCallEnd:
        return stream + Close("completed");
    }
    return stream;
  }

  std::string OnFinish(size_t, const ChatFinish& finish) override {
    finish_ = finish;
    const bool cut = finish.reason == ChatFinish::Reason::kLength;
    std::string stream = Begin() + Close(cut ? "incomplete" : "completed");
    status_ = cut ? "incomplete" : "completed";
    return stream + Event(cut ? "response.incomplete" : "response.completed", {{"response", Response()}});
  }

  std::string End() override { return echo_.stream ? std::string() : Dump(Response()); }

  std::string OnError(const absl::Status& status) override {
    status_ = "failed";
    Json response = Response();
    const Json error = ErrorBody(ApiForm::kOpenAi, status)["error"];
    response["error"] = {{"code", "server_error"}, {"message", error["message"]}};
    return Begin() + Event("response.failed", {{"response", std::move(response)}});
  }

 private:
  enum class Item { kNone, kReasoning, kMessage, kCall };

  Json Response() const {
    Json response = {{"id", identity_.id},
                     {"object", "response"},
                     {"created_at", identity_.created},
                     {"status", status_},
                     {"background", false},
                     {"error", nullptr},
                     {"incomplete_details", status_ == "incomplete" ? Json{{"reason", "max_output_tokens"}} : Json()},
                     {"instructions", echo_.instructions},
                     {"max_output_tokens", echo_.max_output_tokens},
                     {"model", identity_.model},
                     {"output", output_},
                     {"parallel_tool_calls", echo_.parallel_tool_calls},
                     {"previous_response_id", nullptr},
                     {"reasoning", echo_.reasoning},
                     {"store", false},
                     {"temperature", echo_.temperature},
                     {"text", {{"format", echo_.text_format}}},
                     {"tool_choice", echo_.tool_choice},
                     {"tools", echo_.tools},
                     {"top_p", echo_.top_p},
                     {"truncation", "disabled"},
                     {"metadata", echo_.metadata}};
    response["usage"] = finish_ ? Usage() : Json();
    return response;
  }
  Json Usage() const {
    return {{"input_tokens", finish_->prompt_tokens},
            {"input_tokens_details", {{"cached_tokens", finish_->cached_tokens}, {"cache_write_tokens", 0}}},
            {"output_tokens", finish_->generated_tokens},
            {"output_tokens_details", {{"reasoning_tokens", finish_->reasoning_tokens}}},
            {"total_tokens", finish_->prompt_tokens + finish_->generated_tokens}};
  }

  std::string Event(const char* type, Json fields) {
    Json event = {{"type", type}, {"sequence_number", sequence_++}};
    event.update(fields);
    return SseEvent(type, Dump(event));
  }
  // An event of the item that is open.
  std::string Of(const char* type, const Json& fields) {
    Json all = {{"item_id", item_["id"]}, {"output_index", output_.size()}};
    all.update(fields);
    return Event(type, std::move(all));
  }
  // And of its one part.
  std::string Part(const char* type, const Json& fields) {
    Json all = {{"content_index", 0}};
    all.update(fields);
    return Of(type, all);
  }

  std::string Begin() {
    if (std::exchange(begun_, true)) return {};
    std::string stream = Event("response.created", {{"response", Response()}});
    return stream += Event("response.in_progress", {{"response", Response()}});
  }

  std::string Open(Item kind, const OutputEvent& call) {
    if (open_ == kind) return {};
    std::string stream = Close("completed");
    open_ = kind;
    text_.clear();
    switch (kind) {
      case Item::kReasoning:
        item_ = {{"id", RandomId("rs_")}, {"type", "reasoning"}, {"summary", Json::array()}, {"content", Json::array()}};
        break;
      case Item::kMessage:
        item_ = {{"id", RandomId("msg_")}, {"type", "message"}, {"role", "assistant"}, {"content", Json::array()}};
        break;
      default:
        item_ = {{"id", RandomId("fc_")},
                 {"type", "function_call"},
                 {"call_id", call.id.empty() ? RandomId("call_") : call.id},
                 {"name", call.name},
                 {"arguments", ""}};
    }
    item_["status"] = "in_progress";
    stream += Event("response.output_item.added", {{"output_index", output_.size()}, {"item", item_}});
    if (kind != Item::kCall) stream += Part("response.content_part.added", {{"part", PartJson()}});
    return stream;
  }

  Json PartJson() const {
    if (open_ == Item::kReasoning) return {{"type", "reasoning_text"}, {"text", text_}};
    return {{"type", "output_text"}, {"text", text_}, {"annotations", Json::array()}, {"logprobs", Json::array()}};
  }

  std::string Close(const char* status) {
    if (open_ == Item::kNone) return {};
    std::string stream;
    if (open_ == Item::kCall) {
      item_["arguments"] = text_;
      stream += Of("response.function_call_arguments.done", {{"arguments", text_}, {"name", item_["name"]}});
    } else {
      const bool message = open_ == Item::kMessage;
      Json text = {{"text", text_}};
      if (message) text["logprobs"] = Json::array();
      stream += Part(message ? "response.output_text.done" : "response.reasoning_text.done", text);
      stream += Part("response.content_part.done", {{"part", PartJson()}});
      item_["content"].push_back(PartJson());
    }
    item_["status"] = status;
    stream += Event("response.output_item.done", {{"output_index", output_.size()}, {"item", item_}});
    output_.push_back(std::move(item_));
    open_ = Item::kNone;
    return stream;
  }

  const ResponseEcho echo_;
  const AnswerIdentity identity_;
  std::string status_ = "in_progress";
  uint64_t sequence_ = 0;
  bool begun_ = false;
  Item open_ = Item::kNone;
  Json item_;         // the one that is open
  std::string text_;  // its text or arguments
  Json output_ = Json::array();
  std::optional<ChatFinish> finish_;
};

}  // namespace

std::unique_ptr<ChatWriter> NewResponsesWriter(const ResponseEcho& echo, AnswerIdentity identity) {
  return std::make_unique<ResponsesWriter>(echo, std::move(identity));
}

}  // namespace ferry
