#pragma once

// Harmony as a chat format: gpt-oss.

#include <memory>

#include "gateway/chat/chat_format.h"
#include "gateway/harmony/harmony_parser.h"

namespace ferry {

class HarmonyFormat final : public ChatFormat {
 public:
  explicit HarmonyFormat(const HarmonyTokens& tokens) : tokens_(tokens) {}

  std::string_view name() const override { return "harmony"; }
  absl::StatusOr<ChatPrompt> Render(const ChatRequest& request) const override;
  std::unique_ptr<OutputParser> NewParser(const ChatRequest& request, const ChatPrompt& prompt) const override;
  absl::StatusOr<v1::Constraint> Constrain(const ChatRequest& request, const ChatPrompt& prompt,
                                           const AnswerRule& rule) const override;
  std::vector<int32_t> stop_token_ids() const override { return {tokens_.ret, tokens_.call}; }

 private:
  const HarmonyTokens tokens_;
};

}  // namespace ferry
