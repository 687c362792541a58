#pragma once

// How a model's conversations are written: a conversation as a prompt, and the parser of the answer.

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "common/text_piece.h"
#include "gateway/chat/output_parser.h"

namespace ferry {

namespace v1 {
class Constraint;
}
struct AnswerRule;  // answer_rule.h

using Json = nlohmann::ordered_json;  // the order of keys is part of a prompt

// The special tokens of the model's vocabulary. Thread-safe.
class SpecialTokens {
 public:
  virtual ~SpecialTokens() = default;
  // The id of the special token that is written so, for example "<|im_end|>".
  virtual std::optional<int32_t> Find(std::string_view text) const = 0;
};

struct ChatRequest {
  // As in OpenAI's chat completions: role (system, developer, user, assistant, tool), content (a string, null, or a list
  // of text parts), tool_calls, tool_call_id, and reasoning_content of earlier answers.
  Json messages = Json::array();
  Json tools = Json::array();                   // [{"type": "function", "function": {"name", "description", "parameters"}}]
  Json response_format = nullptr;               // or {"type": "json_schema", "json_schema": {"name", "description", "schema"}}
  Json template_kwargs = Json::object();        // variables for the template, such as enable_thinking
  std::optional<std::string> reasoning_effort;  // "low", "medium", "high", ...; "none": no reasoning where it can be turned off
  bool add_generation_prompt = true;            // the prompt ends where the assistant's answer begins
  absl::Time now;                               // for formats that name the date
};

struct ChatPrompt {
  // What the model is given, tokenised without a BOS of the tokenizer's own: the format writes it where there is one.
  // Neighbours differ in from_user.
  std::vector<TextPiece> pieces;

  std::string Text() const;
};

// Immutable; every method may be called from any thread.
class ChatFormat {
 public:
  virtual ~ChatFormat() = default;

  virtual std::string_view name() const = 0;  // of the format, for people: "harmony", "template with Qwen3's calls"

  // InvalidArgument: a message that the format cannot express; the message names it, or is the template's own.
  // ResourceExhausted, DeadlineExceeded: the template takes too much.
  virtual absl::StatusOr<ChatPrompt> Render(const ChatRequest& request) const = 0;

  // For the answer to `prompt`, which this rendered of `request`. Keeps a reference to neither.
  virtual std::unique_ptr<OutputParser> NewParser(const ChatRequest& request, const ChatPrompt& prompt) const = 0;

  // The constraint under which the engine's output for `prompt` keeps `rule`, which is not free: reasoning stays free, and
  // NewParser's parser then tells content of the rule's form, or calls of its tools. InvalidArgument: the format cannot express
  // it; the message names the field.
  virtual absl::StatusOr<v1::Constraint> Constrain(const ChatRequest& request, const ChatPrompt& prompt,
                                                   const AnswerRule& rule) const = 0;

  // Tokens that end an answer beyond those that the model file names.
  virtual std::vector<int32_t> stop_token_ids() const { return {}; }
};

struct ChatModel {
  std::string architecture;             // general.architecture
  std::string chat_template;            // the file's, or what --chat-template-file holds; empty: the family's
  std::string bos_token, eos_token;     // their texts, which templates write
  const SpecialTokens* special_tokens;  // must outlive the format
};

// The format of a model. InvalidArgument: its template is not understood; the message names the line. NotFound: there is
// neither a template nor a family whose format is known.
absl::StatusOr<std::unique_ptr<ChatFormat>> MakeChatFormat(const ChatModel& model);

}  // namespace ferry
