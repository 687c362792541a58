#include "gateway/routes/chat_answer.h"

#include <utility>

namespace ferry {
namespace {

class ChatAnswer final : public AnswerWriter {
 public:
  ChatAnswer(std::vector<std::unique_ptr<OutputParser>> parsers, const ChatAnswerOptions& options, std::vector<StopMatcher> stops,
             uint64_t prompt_tokens, Model model, std::unique_ptr<ChatWriter> writer)
      : options_(options), prompt_tokens_(prompt_tokens), model_(std::move(model)), writer_(std::move(writer)) {
    for (size_t i = 0; i < parsers.size(); ++i) {
      answers_.push_back({.parser = std::move(parsers[i]), .stops = std::move(stops[i])});
    }
  }

  bool streams() const override { return options_.stream; }
  bool ended(size_t index) const override { return answers_[index].ended; }

  std::string OnMessage(size_t index, const v1::GenerateResponse& message) override {
    Answer& answer = answers_[index];
    std::string stream;
    if (message.has_prompt_progress()) stream += writer_->OnProgress(index, message.prompt_progress());
    for (int i = 0; i < message.token_ids_size() && !answer.ended; ++i) {
      ++answer.tokens;
      const OutputToken token = {.id = static_cast<int32_t>(message.token_ids(i)),
                                 .text = model_->tokens.Shown(message.token_ids(i))};
      const std::vector<OutputEvent> events = answer.parser->Feed({&token, 1});
      if (!events.empty()) answer.last = events.back().kind;
      if (answer.last == OutputEvent::Kind::kReasoning) ++answer.reasoning_tokens;
      if (i < message.logprobs_size() && answer.last == OutputEvent::Kind::kContent) {
        stream += writer_->OnLogprobs(index, message.logprobs(i));
      }
      for (const OutputEvent& event : events) stream += OnEvent(index, event);
    }
    if (message.has_finish() && !answer.ended) stream += OnLast(index, message.finish());
    return options_.stream ? std::move(stream) : std::string();
  }

  std::string End() override {
    std::string stream;
    for (size_t i = 0; i < answers_.size(); ++i) {  // an engine that ends without a finish
      if (!answers_[i].ended) stream += Finish(i, ChatFinish::Reason::kStop, std::nullopt);
    }
    return stream + writer_->End();
  }
  std::string OnError(const absl::Status& status) override { return writer_->OnError(status); }

 private:
  struct Answer {
    std::unique_ptr<OutputParser> parser;
    StopMatcher stops;
    std::optional<OutputEvent::Kind> last;
    uint64_t tokens = 0, reasoning_tokens = 0;
    bool calls = false;  // it has at least one tool call
    bool ended = false;  // its finish is written
  };

  std::string OnEvent(size_t index, const OutputEvent& event) {
    Answer& answer = answers_[index];
    if (answer.ended) return {};
    if (event.kind == OutputEvent::Kind::kContent) return OnContent(index, event);
    // Content held back for a stop string comes before the text that follows it.
    std::string stream = FlushContent(index);
    if (event.kind == OutputEvent::Kind::kToolCallStart) answer.calls = true;
    stream += writer_->OnEvent(index, event);
    if (event.kind == OutputEvent::Kind::kToolCallEnd && !options_.parallel_tool_calls) {
      stream += Finish(index, ChatFinish::Reason::kToolCalls, std::nullopt);
    }
    return stream;
  }

  std::string OnContent(size_t index, const OutputEvent& event) {
    Answer& answer = answers_[index];
    const StopMatcher::Result shown = answer.stops.Push(event.text);
    std::string stream = shown.text.empty() ? "" : writer_->OnEvent(index, ContentEvent(shown.text, event.is_preamble));
    if (shown.stop) {
      stream += Finish(index, answer.calls ? ChatFinish::Reason::kToolCalls : ChatFinish::Reason::kStop,
                       options_.stops[static_cast<size_t>(*shown.stop)]);
    }
    return stream;
  }
  std::string FlushContent(size_t index) {
    const std::string held = answers_[index].stops.Flush();
    return held.empty() ? "" : writer_->OnEvent(index, ContentEvent(held, /*is_preamble=*/false));
  }
  static OutputEvent ContentEvent(const std::string& text, bool is_preamble) {
    return {.kind = OutputEvent::Kind::kContent, .text = text, .is_preamble = is_preamble};
  }

  // The engine's last message.
  std::string OnLast(size_t index, const v1::Finish& finish) {
    Answer& answer = answers_[index];
    std::string stream;
    for (const OutputEvent& event : answer.parser->Finish()) stream += OnEvent(index, event);
    if (answer.ended) return stream;
    stream += FlushContent(index);
    const ChatFinish::Reason reason = finish.reason() == v1::Finish::LENGTH ? ChatFinish::Reason::kLength
                                      : answer.calls                        ? ChatFinish::Reason::kToolCalls
                                                                            : ChatFinish::Reason::kStop;
    return stream + Finish(index, reason, std::nullopt, &finish);
  }

  std::string Finish(size_t index, ChatFinish::Reason reason, std::optional<std::string> matched_stop,
                     const v1::Finish* engine = nullptr) {
    Answer& answer = answers_[index];
    answer.ended = true;
    ChatFinish finish = {.reason = reason,
                         .matched_stop = std::move(matched_stop),
                         .prompt_tokens = prompt_tokens_,
                         .generated_tokens = answer.tokens,
                         .reasoning_tokens = answer.reasoning_tokens};
    if (engine != nullptr) {
      finish.cached_tokens = engine->cached_prompt_tokens();
      finish.engine = *engine;
    }
    return writer_->OnFinish(index, finish);
  }

  const ChatAnswerOptions options_;
  const uint64_t prompt_tokens_;
  const Model model_;
  const std::unique_ptr<ChatWriter> writer_;
  std::vector<Answer> answers_;
};

}  // namespace

std::unique_ptr<AnswerWriter> NewChatAnswer(std::vector<std::unique_ptr<OutputParser>> parsers, const ChatAnswerOptions& options,
                                            std::vector<StopMatcher> stops, uint64_t prompt_tokens, Model model,
                                            std::unique_ptr<ChatWriter> writer) {
  return std::make_unique<ChatAnswer>(std::move(parsers), options, std::move(stops), prompt_tokens, std::move(model),
                                      std::move(writer));
}

}  // namespace ferry
