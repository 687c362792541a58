#include "gateway/chat/template_format.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "gateway/chat/answer_rule.h"
#include "gateway/chat/messages.h"
#include "gateway/parsers/call_constraints.h"
#include "gateway/parsers/json_calls.h"
#include "gateway/parsers/keyed_calls.h"
#include "gateway/parsers/section_calls.h"
#include "gateway/parsers/text_parser.h"

namespace ferry {
namespace {

bool Mentions(std::string_view source, std::string_view text) { return source.find(text) != std::string_view::npos; }

// The syntax of calls, by the tags that the template writes into the history.
TemplateFormat::Calls CallsOf(std::string_view source) {
  using Calls = TemplateFormat::Calls;
  if (Mentions(source, KimiTags().call_begin)) return Calls::kKimi;
  if (Mentions(source, DeepSeekTags().call_begin)) return Calls::kDeepSeek;
  if (Mentions(source, "<arg_key>")) return Calls::kGlm;
  if (Mentions(source, "<function=")) return Calls::kQwenXml;
  return Mentions(source, "<tool_call>") ? Calls::kJson : Calls::kNone;
}

constexpr std::string_view kThink = "<think>", kEndThink = "</think>";

// Whether the prompt ends with an open think tag.
bool OpensReasoning(const ChatPrompt& prompt) {
  constexpr size_t kTail = 64;
  std::string tail;
  for (auto piece = prompt.pieces.rbegin(); piece != prompt.pieces.rend() && tail.size() < kTail; ++piece) {
    if (piece->from_user) break;
    tail = piece->text + tail;
  }
  tail.erase(tail.find_last_not_of(" \t\r\n") + 1);
  return std::string_view(tail).ends_with(kThink);
}

}  // namespace

TemplateFormat::TemplateFormat(const ChatModel& model, std::string_view source, std::unique_ptr<jinja::Template> parsed)
    : template_(std::move(parsed)),
      bos_token_(model.bos_token),
      eos_token_(model.eos_token),
      special_tokens_(*model.special_tokens),
      has_reasoning_(Mentions(source, "</think>")),
      knows_developer_(Mentions(source, "developer")),
      calls_(CallsOf(source)),
      fences_arguments_(Mentions(source, "```json")) {}

absl::StatusOr<std::unique_ptr<TemplateFormat>> TemplateFormat::Create(const ChatModel& model, std::string_view source) {
  absl::StatusOr<std::unique_ptr<jinja::Template>> parsed = jinja::Template::Parse(source);
  if (!parsed.ok()) return Annotate(parsed.status(), "chat template");
  return std::unique_ptr<TemplateFormat>(new TemplateFormat(model, source, *std::move(parsed)));
}

absl::StatusOr<ChatPrompt> TemplateFormat::Render(const ChatRequest& request) const {
  ASSIGN_OR_RETURN(Json messages, CheckedMessages(request.messages));
  if (!knows_developer_) {
    for (Json& message : messages) {
      if (message["role"] == "developer") message["role"] = "system";
    }
  }
  jinja::Variables variables;
  if (request.reasoning_effort) {
    variables.from_user["reasoning_effort"] = *request.reasoning_effort;
    if (*request.reasoning_effort == "none") {
      // The two names under which templates know it.
      variables.from_user["enable_thinking"] = false;
      variables.from_user["thinking"] = false;
    }
  }
  if (!request.template_kwargs.is_object()) return InvalidArgument("chat_template_kwargs: an object is wanted");
  variables.from_user.update(request.template_kwargs);
  variables.from_user["tools"] = request.tools.empty() ? Json() : request.tools;
  variables.from_user["documents"] = nullptr;
  variables.from_server = {{"bos_token", bos_token_}, {"eos_token", eos_token_}};
  variables.from_server["add_generation_prompt"] = request.add_generation_prompt;
  // Templates differ in the form that they expect, and fail with another: the first form that works is taken.
  absl::Status first_error;
  for (const MessageForm& form : {MessageForm{true, false}, {false, false}, {true, true}, {false, true}}) {
    variables.from_user["messages"] = WithForm(messages, form);
    absl::StatusOr<std::vector<TextPiece>> pieces = template_->Render(variables, request.now);
    if (pieces.ok()) return ChatPrompt{*std::move(pieces)};
    if (pieces.status().code() != absl::StatusCode::kInvalidArgument) return pieces.status();
    if (first_error.ok()) first_error = pieces.status();
  }
  return Annotate(first_error, "chat template");
}

std::unique_ptr<ToolCallSyntax> TemplateFormat::NewSyntax(const ChatRequest& request) const {
  switch (calls_) {
    case Calls::kNone:
      return std::make_unique<NoToolCalls>();
    case Calls::kJson:
      return std::make_unique<JsonCalls>();
    case Calls::kQwenXml:
      return std::make_unique<KeyedCalls>(QwenXmlTags(), request.tools);
    case Calls::kGlm:
      return std::make_unique<KeyedCalls>(GlmTags(), request.tools);
    case Calls::kDeepSeek:
      return std::make_unique<SectionCalls>(DeepSeekTags());
    case Calls::kKimi:
      return std::make_unique<SectionCalls>(KimiTags());
  }
  return nullptr;
}

std::string_view TemplateFormat::name() const {
  switch (calls_) {
    case Calls::kNone:
      return "template";
    case Calls::kJson:
      return "template with calls in JSON";
    case Calls::kQwenXml:
      return "template with calls in Qwen's XML";
    case Calls::kGlm:
      return "template with GLM's calls";
    case Calls::kDeepSeek:
      return "template with DeepSeek's calls";
    case Calls::kKimi:
      return "template with Kimi's calls";
  }
  return "";
}

std::vector<std::string_view> TemplateFormat::OpeningTags() const {
  switch (calls_) {
    case Calls::kNone:
      return {};
    case Calls::kJson:
      return {"<tool_call>"};
    case Calls::kQwenXml:
      return QwenXmlTags().open;
    case Calls::kGlm:
      return GlmTags().open;
    case Calls::kDeepSeek:
      return {DeepSeekTags().section_begin, DeepSeekTags().call_begin};
    case Calls::kKimi:
      return {KimiTags().section_begin, KimiTags().call_begin};
  }
  return {};
}

absl::StatusOr<v1::Constraint> TemplateFormat::CallsUnder(const AnswerRule& rule) const {
  switch (calls_) {
    case Calls::kNone:
      break;
    case Calls::kJson:
      return JsonCallsUnder(rule, special_tokens_);
    case Calls::kQwenXml:
      return QwenXmlCallsUnder(rule, special_tokens_);
    case Calls::kGlm:
      return GlmCallsUnder(rule, special_tokens_);
    case Calls::kDeepSeek:
      return DeepSeekCallsUnder(rule, fences_arguments_, special_tokens_);
    case Calls::kKimi:
      return KimiCallsUnder(rule, special_tokens_);
  }
  return InvalidArgument("tools: this model's chat template has no tool calls");
}

absl::StatusOr<v1::Constraint> TemplateFormat::Constrain(const ChatRequest&, const ChatPrompt& prompt,
                                                         const AnswerRule& rule) const {
  std::vector<v1::Constraint> output;
  if (has_reasoning_) {
    v1::Constraint reasoning =
        parts::Sequence({parts::Text({kEndThink}), parts::Tag(special_tokens_, kEndThink), parts::Space()});
    if (!OpensReasoning(prompt)) {
      reasoning = parts::Optional(parts::Sequence({parts::Space(), parts::Tag(special_tokens_, kThink), std::move(reasoning)}));
    }
    output.push_back(std::move(reasoning));
  }
  std::vector<v1::Constraint> answers;
  if (!rule.requires_call) answers.push_back(rule.content ? *rule.content : parts::Text(OpeningTags()));
  if (!rule.tools.empty() && (rule.requires_call || calls_ != Calls::kNone)) {
    ASSIGN_OR_RETURN(v1::Constraint calls, CallsUnder(rule));
    // Content may come before calls that the model need not make.
    const bool free = !rule.requires_call && !rule.content;
    answers.push_back(parts::Sequence({free ? answers[0] : parts::Space(), std::move(calls)}));
  }
  output.push_back(parts::AnyOf(std::move(answers)));
  return parts::Sequence(std::move(output));
}

std::unique_ptr<OutputParser> TemplateFormat::NewParser(const ChatRequest& request, const ChatPrompt& prompt) const {
  return std::make_unique<TextParser>(
      TextParserOptions{.has_reasoning = has_reasoning_, .starts_in_reasoning = has_reasoning_ && OpensReasoning(prompt)},
      NewSyntax(request), special_tokens_);
}

}  // namespace ferry
