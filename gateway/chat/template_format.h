#pragma once

// A format that a Jinja template writes.

#include <memory>
#include <string>

#include "gateway/chat/chat_format.h"
#include "gateway/parsers/text_parser.h"
#include "gateway/template/template.h"

namespace ferry {

class TemplateFormat final : public ChatFormat {
 public:
  // How the model writes tool calls.
  enum class Calls { kNone, kJson, kQwenXml, kGlm, kDeepSeek, kKimi };

  // InvalidArgument: the template is not understood.
  static absl::StatusOr<std::unique_ptr<TemplateFormat>> Create(const ChatModel& model, std::string_view source);

  std::string_view name() const override;
  absl::StatusOr<ChatPrompt> Render(const ChatRequest& request) const override;
  std::unique_ptr<OutputParser> NewParser(const ChatRequest& request, const ChatPrompt& prompt) const override;
  absl::StatusOr<v1::Constraint> Constrain(const ChatRequest& request, const ChatPrompt& prompt,
                                           const AnswerRule& rule) const override;

 private:
  TemplateFormat(const ChatModel& model, std::string_view source, std::unique_ptr<jinja::Template> parsed);

  absl::StatusOr<v1::Constraint> CallsUnder(const AnswerRule& rule) const;
  std::vector<std::string_view> OpeningTags() const;  // with which calls begin
  std::unique_ptr<ToolCallSyntax> NewSyntax(const ChatRequest& request) const;

  const std::unique_ptr<jinja::Template> template_;
  const std::string bos_token_, eos_token_;
  const SpecialTokens& special_tokens_;
  const bool has_reasoning_;    // the template knows think tags
  const bool knows_developer_;  // or else that role is called system
  const Calls calls_;
  const bool fences_arguments_;  // Calls::kDeepSeek: DeepSeek-V3's
};

}  // namespace ferry
