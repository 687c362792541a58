// Answers in the form that Anthropic's clients read: content blocks, each with a start and a stop.

#include <utility>

#include "gateway/http/sse.h"
#include "gateway/json/repeated_event.h"
#include "gateway/routes/completions.h"
#include "gateway/routes/messages.h"

namespace ferry {
namespace {

const char* ReasonName(const ChatFinish& finish) {
  if (finish.matched_stop) return "stop_sequence";
  switch (finish.reason) {
    case ChatFinish::Reason::kLength:
      return "max_tokens";
    case ChatFinish::Reason::kToolCalls:
      return "tool_use";
    case ChatFinish::Reason::kStop:
      return "end_turn";
  }
  return "end_turn";
}

std::string Event(const Json& data) { return SseEvent(data["type"].get<std::string>(), Dump(data)); }

class MessagesWriter final : public ChatWriter {
 public:
  MessagesWriter(bool stream, const std::string& id, const std::string& model, uint64_t prompt_tokens)
      : stream_(stream), id_(id), model_(model), prompt_tokens_(prompt_tokens) {}

  std::string OnEvent(size_t, const OutputEvent& event) override {
    std::string stream = Begin();
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        stream += Open("thinking", {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
        return stream + Delta("thinking", "thinking_delta", event.text);
      case OutputEvent::Kind::kContent:
        stream += Open("text", {{"type", "text"}, {"text", ""}});
        return stream + Delta("text", "text_delta", event.text);
      case OutputEvent::Kind::kToolCallStart:
        stream += Close();  // two calls are two blocks
        stream += Open("tool_use", {{"type", "tool_use"},
                                    {"id", event.id.empty() ? RandomId("toolu_") : event.id},
                                    {"name", event.name},
                                    {"input", Json::object()}});
        return stream;
      case OutputEvent::Kind::kToolCallArguments:
        if (open_ != "tool_use") return stream;
        arguments_ += event.text;
        return stream + Piece("input_json_delta", "partial_json", event.text);
      case OutputEvent::Kind::kToolCallEnd:
        return stream + Close();
    }
    return stream;
  }

  std::string OnFinish(size_t, const ChatFinish& finish) override {
    finish_ = finish;
    std::string stream = Begin() + Close();
    stream += Event({{"type", "message_delta"}, {"delta", StopJson()}, {"usage", Usage()}});
    return stream + Event({{"type", "message_stop"}});
  }

  std::string End() override {
    if (stream_) return {};
    Json message = Message();
    message["content"] = blocks_;
    message.update(StopJson());
    message["usage"] = Usage();
    return Dump(message);
  }

  std::string OnError(const absl::Status& status) override {
    return SseEvent("error", Dump(ErrorBody(ApiForm::kAnthropic, status)));
  }

 private:
  Json Message() const {
    return {{"id", id_},
            {"type", "message"},
            {"role", "assistant"},
            {"model", model_},
            {"content", Json::array()},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr},
            {"usage", {{"input_tokens", prompt_tokens_}, {"output_tokens", 0}}}};
  }
  Json StopJson() const {
    return {{"stop_reason", finish_ ? Json(ReasonName(*finish_)) : Json()},
            {"stop_sequence", finish_ && finish_->matched_stop ? Json(*finish_->matched_stop) : Json()}};
  }
  // Anthropic's input_tokens leaves out the tokens read from the cache.
  Json Usage() const {
    const uint64_t cached = finish_ ? finish_->cached_tokens : 0;
    return {{"input_tokens", prompt_tokens_ - std::min(prompt_tokens_, cached)},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", cached},
            {"output_tokens", finish_ ? finish_->generated_tokens : 0}};
  }

  std::string Begin() {
    if (std::exchange(begun_, true)) return {};
    return Event({{"type", "message_start"}, {"message", Message()}});
  }
  // Makes the block that is open one of this type.
  std::string Open(const char* type, Json block) {
    if (open_ == type) return {};
    std::string stream = Close();
    open_ = type;
    arguments_.clear();
    pieces_.Forget();
    stream += Event({{"type", "content_block_start"}, {"index", blocks_.size()}, {"content_block", block}});
    blocks_.push_back(std::move(block));
    return stream;
  }
  std::string DeltaEvent(Json delta) {
    return Event({{"type", "content_block_delta"}, {"index", blocks_.size() - 1}, {"delta", std::move(delta)}});
  }
  std::string Piece(const char* type, const char* field, const std::string& text) {
    if (!stream_) return {};
    return pieces_.Of(text, [&](const std::string& piece) { return DeltaEvent({{"type", type}, {field, piece}}); });
  }
  std::string Delta(const char* field, const char* type, const std::string& text) {
    blocks_.back()[field].get_ref<std::string&>() += text;
    return Piece(type, field, text);
  }
  std::string Close() {
    if (open_.empty()) return {};
    if (open_ == "tool_use") {
      // Arguments that are no JSON object are still delivered: the client tells the model about the fault.
      Json input = Json::parse(arguments_, nullptr, /*allow_exceptions=*/false);
      blocks_.back()["input"] = input.is_object() ? std::move(input) : Json{{"invalid_arguments", arguments_}};
      if (arguments_.empty()) blocks_.back()["input"] = Json::object();
    }
    std::string stream = open_ == "thinking" ? DeltaEvent({{"type", "signature_delta"}, {"signature", ""}}) : "";
    open_.clear();
    return stream + Event({{"type", "content_block_stop"}, {"index", blocks_.size() - 1}});
  }

  const bool stream_;
  const std::string id_, model_;
  const uint64_t prompt_tokens_;
  bool begun_ = false;
  std::string open_;       // the type of the block that is open
  std::string arguments_;  // of the open call
  RepeatedEvent pieces_;   // of the open block
  Json blocks_ = Json::array();
  std::optional<ChatFinish> finish_;
};

}  // namespace

std::unique_ptr<ChatWriter> NewMessagesWriter(bool stream, const std::string& id, const std::string& model,
                                              uint64_t prompt_tokens) {
  return std::make_unique<MessagesWriter>(stream, id, model, prompt_tokens);
}

}  // namespace ferry
