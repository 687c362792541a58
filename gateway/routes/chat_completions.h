#pragma once

// /v1/chat/completions as a translation.

#include <memory>

#include "gateway/routes/chat_job.h"
#include "gateway/routes/completions.h"
#include "gateway/routes/output_rules.h"

namespace ferry {

struct ChatCompletionShape {
  bool stream = false, include_usage = false, logprobs = false;
  size_t n = 1;
};
struct ChatCompletion {
  ChatPlan plan;
  ChatCompletionShape shape;
};

// InvalidArgument names the field.
absl::StatusOr<ChatCompletion> ChatCompletionOf(const Json& body);

// The conversation alone: messages, tools and what a template reads. Shared with /apply-template.
absl::StatusOr<ChatRequest> ChatRequestOf(const JsonFields& fields, const ToolChoice& choice);

std::unique_ptr<ChatWriter> NewChatCompletionWriter(const ChatCompletionShape& shape, AnswerIdentity identity, Model model);

}  // namespace ferry
