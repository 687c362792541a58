#pragma once

// A conversation with a model over /v1/chat/completions, and the commands of `ferry chat` that change it.

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/http_call.h"
#include "common/status.h"

namespace ferry {

// Messages in their order: a system message or none, then those of the user and the assistant.
class Conversation {
 public:
  const std::string& system() const { return system_; }
  void SetSystem(std::string text) { system_ = std::move(text); }
  // Leaves the system message.
  void Clear() { messages_ = nlohmann::json::array(); }
  bool empty() const { return messages_.empty(); }
  void Add(const char* role, const std::string& text) { messages_.push_back({{"role", role}, {"content", text}}); }
  void DropLast() {
    if (!messages_.empty()) messages_.erase(messages_.size() - 1);
  }
  // Whether the last message is the assistant's.
  bool answered() const { return !messages_.empty() && messages_.back()["role"] == "assistant"; }

  // In the form of the API's "messages".
  nlohmann::json Messages() const;
  // A file that /save has written: {"messages": [...]}. InvalidArgument: it has another form; nothing is changed.
  absl::Status Load(const std::string& text);

 private:
  std::string system_;
  nlohmann::json messages_ = nlohmann::json::array();
};

struct ChatAnswer {
  std::string content;
  bool stopped = false;   // by Cancel
  std::string finish;     // "stop", "length", "tool_calls"
  int64_t tokens = 0;     // 0: the server did not say
  double per_second = 0;  // tokens; 0: the server did not say
};

class ChatSession {
 public:
  using Shown = std::function<void(const std::string& text)>;

  // `server` is asked before each request, since a gateway that was started again has another port. `fields`: of each request,
  // beside its messages.
  ChatSession(std::function<absl::StatusOr<HttpServer>()> server, nlohmann::json fields)
      : server_(std::move(server)), fields_(std::move(fields)) {}

  nlohmann::json& fields() { return fields_; }
  // The name of the model, which a server tells at once. Errors: the server's.
  absl::StatusOr<std::string> ModelName();
  // The answer to the conversation so far, shown as it comes. The server's errors have its words; FailedPrecondition: the model
  // has no chat template; InvalidArgument: a message is not UTF-8.
  absl::StatusOr<ChatAnswer> Ask(const Conversation& conversation, const Shown& on_reasoning, const Shown& on_content);
  // Ends the answer that is under way. Callable from any thread; false: there is none.
  bool Cancel();

 private:
  absl::StatusOr<std::unique_ptr<HttpCall>> NewCall(absl::Duration patience) const;
  absl::Status ReadStream(HttpCall& call, ChatAnswer* answer, const Shown& on_reasoning, const Shown& on_content);

  const std::function<absl::StatusOr<HttpServer>()> server_;
  nlohmann::json fields_;
  std::mutex mutex_;
  HttpCall* running_ = nullptr;  // guarded by mutex_
};

}  // namespace ferry
