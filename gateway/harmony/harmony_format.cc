#include "gateway/harmony/harmony_format.h"

#include "gateway/chat/messages.h"
#include "gateway/harmony/harmony_renderer.h"

namespace ferry {

absl::StatusOr<ChatPrompt> HarmonyFormat::Render(const ChatRequest& request) const { return RenderHarmony(request); }

std::unique_ptr<OutputParser> HarmonyFormat::NewParser(const ChatRequest& request, const ChatPrompt&) const {
  return std::make_unique<HarmonyParser>(tokens_, FunctionNames(request.tools));
}

}  // namespace ferry
