#pragma once

// Anthropic's /v1/messages as a translation.

#include <memory>
#include <string>

#include "gateway/routes/chat_job.h"

namespace ferry {

// InvalidArgument names the field. With `count_only`, for count_tokens, max_tokens may be missing.
absl::StatusOr<ChatPlan> MessagesPlanOf(const Json& body, bool count_only);

std::unique_ptr<ChatWriter> NewMessagesWriter(bool stream, const std::string& id, const std::string& model,
                                              uint64_t prompt_tokens);

}  // namespace ferry
