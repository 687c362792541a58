#pragma once

// Answers of conversations, whatever API asked: what the engine says becomes events of reasoning, content and tool calls, which a
// writer of the API's form writes down.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/generation/stop_matcher.h"
#include "gateway/chat/chat_format.h"
#include "gateway/model_cache.h"
#include "gateway/routes/generation_job.h"

namespace ferry {

struct ChatFinish {
  enum class Reason { kStop, kLength, kToolCalls };
  Reason reason = Reason::kStop;
  std::optional<std::string> matched_stop;
  uint64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0, reasoning_tokens = 0;
  std::optional<v1::Finish> engine;  // missing where the gateway ended the generation: at a stop string
};

// What a request wants of its answers beside the form.
struct ChatAnswerOptions {
  bool stream = false;
  std::vector<std::string> stops;   // in the content alone, and not part of it
  bool parallel_tool_calls = true;  // else the answer ends with its first call
};

// Writes the events of all answers of one request in an API's form. Each method but End returns pieces of the stream, which are
// ignored when nothing streams.
class ChatWriter {
 public:
  virtual ~ChatWriter() = default;

  // `logprobs`: of tokens that belong to the content of answer `index`, before the events that they lead to.
  virtual std::string OnLogprobs(size_t index, const v1::PositionLogprobs& logprobs) { return {}; }
  // How far the prompt of answer `index` is; asked for with GenerateRequest.prompt_progress.
  virtual std::string OnProgress(size_t index, const v1::PromptProgress& progress) { return {}; }
  virtual std::string OnEvent(size_t index, const OutputEvent& event) = 0;
  virtual std::string OnFinish(size_t index, const ChatFinish& finish) = 0;
  virtual std::string End() = 0;
  virtual std::string OnError(const absl::Status& status) = 0;
};

// `parsers`: one an answer. `prompt_tokens`: of each answer's prompt.
std::unique_ptr<AnswerWriter> NewChatAnswer(std::vector<std::unique_ptr<OutputParser>> parsers, const ChatAnswerOptions& options,
                                            std::vector<StopMatcher> stops, uint64_t prompt_tokens, Model model,
                                            std::unique_ptr<ChatWriter> writer);

}  // namespace ferry
