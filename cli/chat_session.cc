#include "cli/chat_session.h"

#include "absl/strings/match.h"
#include "cli/late_word.h"
#include "common/escaped.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxLine = size_t{4} << 20;  // of a stream
constexpr size_t kMaxErrorBody = size_t{1} << 20;

constexpr absl::Duration kNamePatience = absl::Seconds(30), kAnswerPatience = absl::Minutes(10);

// A string at `path` within `json`; empty: there is none.
std::string TextAt(const Json& json, const char* path) {
  const Json::json_pointer pointer(path);
  return json.contains(pointer) && json[pointer].is_string() ? json[pointer].get<std::string>() : std::string();
}
double NumberAt(const Json& json, const char* path) {
  const Json::json_pointer pointer(path);
  return json.contains(pointer) && json[pointer].is_number() ? json[pointer].get<double>() : 0;
}

// An answer that is none, with the server's words where it has some.
absl::Status ErrorOf(int status, const std::string& body) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  std::string message = json.is_object() ? TextAt(json, "/error/message") : "";
  if (message.empty()) message = absl::StrFormat("the server answered with status %d", status);
  message = Escaped(message, 2000);
  if (status == 401) return absl::UnauthenticatedError(message + "; set FERRY_API_KEY");
  if (status == 400) return InvalidArgument("%s", message);
  return status == 503 || status == 429 ? Unavailable("%s", message) : FailedPrecondition("%s", message);
}

bool IsMessage(const Json& message) {
  if (!message.is_object() || !message.contains("role") || !message.contains("content")) return false;
  const Json& role = message["role"];
  return message["content"].is_string() && (role == "system" || role == "user" || role == "assistant");
}

}  // namespace

Json Conversation::Messages() const {
  Json messages = Json::array();
  if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
  for (const Json& message : messages_) messages.push_back(message);
  return messages;
}

absl::Status Conversation::Load(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array()) {
    return InvalidArgument("it is not a conversation: want {\"messages\": [...]}");
  }
  Conversation loaded;
  for (const Json& message : json["messages"]) {
    if (!IsMessage(message)) return InvalidArgument("message %d has no role and content as text", loaded.messages_.size());
    if (message["role"] == "system") {
      loaded.system_ = message["content"];
    } else {
      loaded.messages_.push_back({{"role", message["role"]}, {"content", message["content"]}});
    }
  }
  *this = std::move(loaded);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HttpCall>> ChatSession::NewCall(absl::Duration patience) const {
  ASSIGN_OR_RETURN(const HttpServer server, server_());
  return HttpCall::To(server, patience);
}

absl::StatusOr<std::string> ChatSession::ModelName() {
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpCall> call, NewCall(kNamePatience));
  const LateWord word("asking for the model's name");
  RETURN_IF_ERROR(call->Send("/v1/models", ""));
  ASSIGN_OR_RETURN(const std::string body, ReadBody(*call));
  if (call->status() != 200) return ErrorOf(call->status(), body);
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  return Escaped(TextAt(json, "/data/0/id"));
}

absl::StatusOr<ChatAnswer> ChatSession::Ask(const Conversation& conversation, const Shown& on_reasoning,
                                            const Shown& on_content) {
  for (const Json& message : conversation.Messages()) {
    if (!IsValidUtf8(message["content"].get_ref<const std::string&>())) {
      return InvalidArgument("the %s message is not UTF-8", message["role"].get<std::string>());
    }
  }
  Json body = fields_;
  body["messages"] = conversation.Messages();
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpCall> call, NewCall(kAnswerPatience));
  {
    const std::lock_guard lock(mutex_);
    running_ = call.get();
  }
  ChatAnswer answer;
  absl::Status status = call->Send("/v1/chat/completions", body.dump());
  if (status.ok()) status = ReadStream(*call, &answer, on_reasoning, on_content);
  {
    const std::lock_guard lock(mutex_);
    running_ = nullptr;
  }
  answer.stopped = absl::IsCancelled(status);
  if (!status.ok() && !answer.stopped) return status;
  return answer;
}

absl::Status ChatSession::ReadStream(HttpCall& call, ChatAnswer* answer, const Shown& on_reasoning, const Shown& on_content) {
  if (call.status() != 200) {
    ASSIGN_OR_RETURN(const std::string body, ReadBody(call, kMaxErrorBody));
    return ErrorOf(call.status(), body);
  }
  std::string unread;
  while (true) {
    ASSIGN_OR_RETURN(const std::string piece, call.Read());
    if (piece.empty()) return Unavailable("the server ended the connection within its answer");
    unread += piece;
    for (size_t end = 0; (end = unread.find('\n')) != std::string::npos; unread.erase(0, end + 1)) {
      const std::string line = unread.substr(0, end);
      if (!absl::StartsWith(line, "data:")) continue;
      if (absl::StrContains(line, "[DONE]") && line.size() < 20) return absl::OkStatus();
      const Json chunk = Json::parse(line.substr(5), nullptr, /*allow_exceptions=*/false);
      if (!chunk.is_object()) return Unavailable("the server's stream has an event that is no JSON");
      if (chunk.contains("error")) return ErrorOf(500, line.substr(5));
      std::string reasoning = TextAt(chunk, "/choices/0/delta/reasoning_content");
      if (reasoning.empty()) reasoning = TextAt(chunk, "/choices/0/delta/reasoning");  // vLLM's name
      if (!reasoning.empty()) on_reasoning(reasoning);
      const std::string content = TextAt(chunk, "/choices/0/delta/content");
      if (!content.empty()) on_content(content);
      answer->content += content;
      if (const std::string finish = TextAt(chunk, "/choices/0/finish_reason"); !finish.empty()) answer->finish = finish;
      if (chunk.contains("usage") && chunk["usage"].is_object())
        answer->tokens = static_cast<int64_t>(NumberAt(chunk, "/usage/completion_tokens"));
      if (chunk.contains("timings")) answer->per_second = NumberAt(chunk, "/timings/predicted_per_second");
    }
    if (unread.size() > kMaxLine) return Unavailable("the server's stream has a line of more than %d bytes", kMaxLine);
  }
}

bool ChatSession::Cancel() {
  const std::lock_guard lock(mutex_);
  if (running_ == nullptr) return false;
  running_->Cancel();
  return true;
}

}  // namespace ferry
