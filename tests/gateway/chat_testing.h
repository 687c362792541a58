#pragma once

// A parser whose tokens say what they are, and answers put together from them.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gateway/http/sse.h"
#include "gateway/json/json.h"
#include "gateway/routes/chat_answer.h"
#include "tests/testing/status_matchers.h"

namespace ferry {

enum ScriptToken : uint32_t { kSay, kThink, kCall, kArguments, kCallEnd, kScriptTokens };

class ScriptedParser final : public OutputParser {
 public:
  std::vector<OutputEvent> Feed(std::span<const OutputToken> tokens) override {
    std::vector<OutputEvent> events;
    for (const OutputToken& token : tokens) {
      const std::string text(token.text);
      switch (token.id % kScriptTokens) {
        case kSay:
          events.push_back({.kind = OutputEvent::Kind::kContent, .text = text});
          break;
        case kThink:
          events.push_back({.kind = OutputEvent::Kind::kReasoning, .text = text});
          break;
        case kCall:
          events.push_back({.kind = OutputEvent::Kind::kToolCallStart, .tool_call = ++calls_, .name = text});
          break;
        case kArguments:
          events.push_back({.kind = OutputEvent::Kind::kToolCallArguments, .text = text, .tool_call = calls_});
          break;
        case kCallEnd:
          events.push_back({.kind = OutputEvent::Kind::kToolCallEnd, .tool_call = calls_});
          break;
        default:
          break;
      }
    }
    return events;
  }
  std::vector<OutputEvent> Finish() override { return {}; }

 private:
  int calls_ = -1;
};

using Script = std::vector<std::pair<ScriptToken, std::string>>;

// What an answer says to `script`: the stream, and behind it what End adds.
inline std::string AnswerTo(const Script& script, std::unique_ptr<ChatWriter> writer, const ChatAnswerOptions& options,
                            v1::Finish::Reason reason = v1::Finish::STOP) {
  // Each token of the script has an id that tells its kind, and its text in the vocabulary.
  v1::GetVocabularyResponse vocabulary;
  std::vector<uint32_t> tokens;
  for (const auto& [kind, text] : script) {
    tokens.push_back(static_cast<uint32_t>(vocabulary.tokens_size()) + kind);
    for (uint32_t i = 0; i < kScriptTokens; ++i) vocabulary.add_tokens(text);
  }
  auto model = std::make_shared<ServedModel>();
  model->tokens = TokenBytes(vocabulary);
  std::vector<std::unique_ptr<OutputParser>> parsers;
  parsers.push_back(std::make_unique<ScriptedParser>());
  std::vector<StopMatcher> stops;
  stops.push_back(*StopMatcher::Create(options.stops));
  const std::unique_ptr<AnswerWriter> answer =
      NewChatAnswer(std::move(parsers), options, std::move(stops), /*prompt_tokens=*/10, model, std::move(writer));
  std::string all;
  for (const uint32_t token : tokens) {
    if (answer->ended(0)) break;
    v1::GenerateResponse message;
    message.add_token_ids(token);
    all += answer->OnMessage(0, message);
  }
  if (!answer->ended(0)) {
    v1::GenerateResponse last;
    last.mutable_finish()->set_reason(reason);
    last.mutable_finish()->set_cached_prompt_tokens(4);
    last.mutable_finish()->set_generated_tokens(static_cast<uint32_t>(script.size()));
    all += answer->OnMessage(0, last);
  }
  return all + answer->End();
}

// The JSON of each event of a stream; of "[DONE]" a string.
inline std::vector<Json> EventsOf(const std::string& stream) {
  std::vector<Json> events;
  for (size_t at = 0; at < stream.size();) {
    const size_t data = stream.find("data: ", at), end = stream.find("\n\n", at);
    if (data == std::string::npos || end == std::string::npos) break;
    const std::string text = stream.substr(data + 6, end - data - 6);
    events.push_back(text == "[DONE]" ? Json(text) : Json::parse(text));
    if (data > at) {
      EXPECT_EQ(stream.substr(at, data - at), "event: " + events.back()["type"].get<std::string>() + "\n");
    }
    at = end + 2;
  }
  return events;
}
inline std::vector<std::string> TypesOf(const std::vector<Json>& events) {
  std::vector<std::string> types;
  for (const Json& event : events) types.push_back(event.is_object() ? event.value("type", "") : "");
  return types;
}

}  // namespace ferry
