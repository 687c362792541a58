#pragma once

// /completion, llama-server's own form of completions, as a translation: a body into requests for the engine, its messages into
// the answer's JSON.

#include <memory>

#include "gateway/routes/completions.h"

namespace ferry {

struct LlamaCompletion {
  CompletionRequest request;   // neither echo nor several generations of a prompt
  Json prompts;                // an array: each prompt as it was given
  bool several = false;        // the body has an array of prompts, so the answer is an array
  bool return_tokens = false;  // a whole answer has the ids of its tokens; a stream always has
  Json settings;               // what the answer repeats as generation_settings
};

// generation_settings: the fields that clients look at, with the values that hold where `request` names none.
Json SettingsOf(const v1::GenerateRequest& request, bool stream);

// InvalidArgument names the field.
absl::StatusOr<LlamaCompletion> LlamaCompletionOf(const Json& body);

std::unique_ptr<AnswerWriter> NewLlamaCompletionWriter(LlamaCompletion completion, Model model);

}  // namespace ferry
