#pragma once

// OpenAI's /v1/responses as a translation. Nothing is stored: every request brings its whole conversation.

#include <memory>
#include <string>

#include "gateway/routes/chat_job.h"
#include "gateway/routes/completions.h"

namespace ferry {

// What the answer repeats of the request.
struct ResponseEcho {
  Json instructions = nullptr, tools = Json::array(), tool_choice = "auto", metadata = Json::object(), temperature = nullptr,
       top_p = nullptr, max_output_tokens = nullptr, reasoning = {{"effort", nullptr}, {"summary", nullptr}},
       text_format = {{"type", "text"}};
  bool parallel_tool_calls = true;
  bool stream = false;
};
struct ResponsesPlan {
  ChatPlan plan;
  ResponseEcho echo;
};

// InvalidArgument names the field; previous_response_id is refused.
absl::StatusOr<ResponsesPlan> ResponsesPlanOf(const Json& body);

std::unique_ptr<ChatWriter> NewResponsesWriter(const ResponseEcho& echo, AnswerIdentity identity);

}  // namespace ferry
