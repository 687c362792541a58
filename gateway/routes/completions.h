#pragma once

// /v1/completions as a translation: a body into requests for the engine, its messages into the answer's JSON.

#include <memory>
#include <string>
#include <vector>

#include "ferry/v1/generate.pb.h"
#include "gateway/json/json.h"
#include "gateway/model_cache.h"
#include "gateway/routes/generation_job.h"

namespace ferry {

inline constexpr size_t kMaxGenerationsOfRequest = 128;   // prompts times n
inline constexpr uint32_t kDefaultCompletionTokens = 16;  // as OpenAI documents it

struct CompletionRequest {
  std::vector<v1::GenerateRequest> prompts;  // one a prompt, complete but for the seed of each of n
  int64_t n = 1;
  bool stream = false, include_usage = false, echo = false;
  bool logprobs = false;
  std::vector<std::string> echoed;  // with echo: the text of each prompt; of ids the engine has to be asked
};

// InvalidArgument names the field.
absl::StatusOr<CompletionRequest> CompletionRequestOf(const Json& body);

// The engine's requests: n for each prompt, with different seeds where one was given.
std::vector<v1::GenerateRequest> GenerationsOf(const CompletionRequest& request);

struct AnswerIdentity {
  std::string id;  // "cmpl-..."
  std::string model;
  int64_t created = 0;  // seconds since 1970
};
// `prefix` and 24 random letters and digits.
std::string RandomId(const std::string& prefix);
AnswerIdentity NewIdentity(const std::string& prefix, const std::string& model);

std::unique_ptr<AnswerWriter> NewCompletionWriter(const CompletionRequest& request, AnswerIdentity identity, Model model);

// What OpenAI calls usage, of all generations together. The prompt of the n generations of one prompt counts once.
Json UsageOf(uint64_t prompt_tokens, uint64_t cached_tokens, uint64_t generated_tokens);
// llama-server's timings of one generation.
Json TimingsOf(const v1::Finish& finish);
// llama-server's prompt_progress.
Json ProgressOf(const v1::PromptProgress& progress);
// vLLM's stop_reason: the stop string that ended the generation, null where there was none.
Json StopReasonOf(const v1::Finish& finish);
const char* FinishReasonOf(const v1::Finish& finish);  // "stop", "length"

}  // namespace ferry
