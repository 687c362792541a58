#include "coordinator/text/chat_template.h"

namespace ferry {

absl::StatusOr<std::vector<int32_t>> EncodeHarmonyChat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                                       std::string_view channel) {
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode("", {.add_bos = true}));
  const auto control = [&](std::string_view name) -> absl::Status {
    const std::optional<int32_t> id = tokenizer.FindSpecial(name);
    if (!id) return Unimplemented("the vocabulary has no token %s: the model was not made for harmony chats", name);
    ids.push_back(*id);
    return absl::OkStatus();
  };
  const auto text = [&](std::string_view plain) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<int32_t> more, tokenizer.Encode(plain, {.add_bos = false, .parse_special = false}));
    ids.insert(ids.end(), more.begin(), more.end());
    return absl::OkStatus();
  };
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role.empty()) return InvalidArgument("messages[%d].role is empty", i);
    RETURN_IF_ERROR(control("<|start|>"));
    RETURN_IF_ERROR(text(messages[i].role));
    RETURN_IF_ERROR(control("<|message|>"));
    RETURN_IF_ERROR(text(messages[i].content));
    RETURN_IF_ERROR(control("<|end|>"));
  }
  RETURN_IF_ERROR(control("<|start|>"));
  RETURN_IF_ERROR(text("assistant"));
  if (!channel.empty()) {
    RETURN_IF_ERROR(control("<|channel|>"));
    RETURN_IF_ERROR(text(channel));
    RETURN_IF_ERROR(control("<|message|>"));
  }
  return ids;
}

}  // namespace ferry
