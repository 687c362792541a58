#pragma once

// From a conversation to its answers: renders it, has it tokenized, runs the generations.

#include <functional>
#include <memory>
#include <vector>

#include "gateway/chat/answer_rule.h"
#include "gateway/chat_model.h"
#include "gateway/routes/chat_answer.h"
#include "gateway/routes/routes.h"

namespace ferry {

// A request of any chat API, translated.
struct ChatPlan {
  ChatRequest chat;
  v1::GenerateRequest generation;  // all but the prompt
  ChatAnswerOptions answer;
  AnswerRule rule;
  int64_t n = 1;
  ApiForm form = ApiForm::kOpenAi;
};

// Renders and tokenizes; calls `use` on a thread that must not wait, or answers the call's exchange with the error.
struct PreparedChat {
  ChatModels::Loaded model;
  ChatPrompt prompt;
  std::vector<uint32_t> ids;
};
void PrepareChat(const RouteCall& call, ChatRequest chat, ApiForm form,
                 std::function<void(PreparedChat, const ChatRequest&)> use);

using MakeChatWriter = std::function<std::unique_ptr<ChatWriter>(const Model& model, uint64_t prompt_tokens)>;
void RunChat(const RouteCall& call, ChatPlan plan, MakeChatWriter make_writer);

}  // namespace ferry
