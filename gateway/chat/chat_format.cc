#include "gateway/chat/chat_format.h"

#include "gateway/chat/template_format.h"

namespace ferry {

std::string ChatPrompt::Text() const {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

absl::StatusOr<std::unique_ptr<ChatFormat>> MakeChatFormat(const ChatModel& model) {
  if (model.chat_template.empty()) {
    return NotFound(
        "the model file has no chat template, and there is none for the architecture '%s': give one with "
        "--chat-template-file",
        model.architecture);
  }
  return TemplateFormat::Create(model, model.chat_template);
}

}  // namespace ferry
