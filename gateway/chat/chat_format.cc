#include "gateway/chat/chat_format.h"

#include "gateway/chat/family_templates.h"
#include "gateway/chat/template_format.h"
#include "gateway/harmony/harmony_format.h"

namespace ferry {

std::string ChatPrompt::Text() const {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

absl::StatusOr<std::unique_ptr<ChatFormat>> MakeChatFormat(const ChatModel& model) {
  // Their own template is written for plain text, and so is worse at telling control tokens from a user's text.
  const std::optional<HarmonyTokens> harmony = HarmonyTokens::Find(*model.special_tokens);
  const bool writes_harmony = model.chat_template.empty() || model.chat_template.find("<|channel|>") != std::string::npos;
  if (harmony && writes_harmony) return std::make_unique<HarmonyFormat>(*harmony);
  if (!model.chat_template.empty()) return TemplateFormat::Create(model, model.chat_template);
  const std::optional<std::string> family = FamilyTemplate(model.architecture, *model.special_tokens);
  if (family) return TemplateFormat::Create(model, *family);
  return NotFound(
      "the model file has no chat template, and there is none for the architecture '%s': give one with "
      "--chat-template-file",
      model.architecture);
}

}  // namespace ferry
