// What clients of /v1/responses send, such as Codex, as a conversation in chat completions' form.

#include <utility>

#include "absl/time/clock.h"
#include "gateway/routes/output_rules.h"
#include "gateway/routes/responses.h"
#include "gateway/routes/sampling_fields.h"

namespace ferry {
namespace {

absl::StatusOr<std::string> Needed(const Json& item, const char* name, const std::string& where) {
  ASSIGN_OR_RETURN(const auto text, JsonFields(item, where + ".").String(name));
  if (!text) return FieldError(where + "." + name, where + "." + name + " is missing");
  return *text;
}

// A string, or parts with text.
absl::StatusOr<std::string> TextOfParts(const Json& content, const std::string& where) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    return FieldError(where, where + " is " + DescribeType(content) + ", want a string or an array of parts");
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string at = absl::StrFormat("%s[%d]", where, i);
    if (!content[i].is_object()) return FieldError(at, at + " is " + DescribeType(content[i]) + ", want an object");
    ASSIGN_OR_RETURN(const std::string type, Needed(content[i], "type", at));
    const bool is_text =
        type == "input_text" || type == "output_text" || type == "text" || type == "summary_text" || type == "reasoning_text";
    if (type == "refusal") continue;
    if (!is_text) return FieldError(at, at + " has the type \"" + type.substr(0, 40) + "\", only text is supported");
    ASSIGN_OR_RETURN(const std::string part, Needed(content[i], "text", at));
    text += part;
  }
  return text;
}

// Items of the input become messages; reasoning and calls join the assistant's message that they belong to.
class ItemReader {
 public:
  explicit ItemReader(Json* messages) : messages_(*messages) {}

  absl::Status Add(const Json& item, const std::string& where) {
    if (!item.is_object()) return FieldError(where, where + " is " + DescribeType(item) + ", want an object");
    ASSIGN_OR_RETURN(const auto named, JsonFields(item, where + ".").String("type"));
    const std::string type = named.value_or("message");
    if (type == "message") return AddMessage(item, where);
    if (type == "reasoning") return AddReasoning(item, where);
    if (type == "function_call") return AddCall(item, where);
    if (type == "function_call_output") return AddResult(item, where);
    return FieldError(where, where + " has the type \"" + type.substr(0, 40) + "\", which is not supported");
  }

 private:
  absl::Status AddMessage(const Json& item, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string role, Needed(item, "role", where));
    if (role != "user" && role != "assistant" && role != "system" && role != "developer") {
      return FieldError(where + ".role",
                        where + ".role is \"" + role.substr(0, 40) + "\", want user, assistant, system or developer");
    }
    ASSIGN_OR_RETURN(const std::string text, TextOfParts(item.value("content", Json()), where + ".content"));
    if (role != "assistant") {
      messages_.push_back({{"role", role}, {"content", text}});
      return absl::OkStatus();
    }
    Json& message = Assistant(/*fresh=*/!OpenAssistant() || !messages_.back()["content"].is_null());
    message["content"] = text;
    return absl::OkStatus();
  }
  absl::Status AddReasoning(const Json& item, const std::string& where) {
    ASSIGN_OR_RETURN(std::string text, TextOfParts(item.value("content", Json()), where + ".content"));
    if (text.empty()) {
      ASSIGN_OR_RETURN(text, TextOfParts(item.value("summary", Json()), where + ".summary"));
    }
    if (!text.empty()) Assistant(/*fresh=*/true)["reasoning_content"] = text;
    return absl::OkStatus();
  }
  absl::Status AddCall(const Json& item, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string id, Needed(item, "call_id", where));
    ASSIGN_OR_RETURN(const std::string name, Needed(item, "name", where));
    ASSIGN_OR_RETURN(const std::string arguments, Needed(item, "arguments", where));
    Json& message = Assistant(/*fresh=*/!OpenAssistant());
    if (!message.contains("tool_calls")) message["tool_calls"] = Json::array();
    message["tool_calls"].push_back({{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}});
    return absl::OkStatus();
  }
  absl::Status AddResult(const Json& item, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string id, Needed(item, "call_id", where));
    ASSIGN_OR_RETURN(const std::string output, TextOfParts(item.value("output", Json()), where + ".output"));
    messages_.push_back({{"role", "tool"}, {"tool_call_id", id}, {"content", output}});
    return absl::OkStatus();
  }

  bool OpenAssistant() const { return !messages_.empty() && messages_.back()["role"] == "assistant"; }
  Json& Assistant(bool fresh) {
    if (fresh) messages_.push_back({{"role", "assistant"}, {"content", nullptr}});
    return messages_.back();
  }

  Json& messages_;
};

absl::Status RefuseUnsupportedOfResponses(const JsonFields& fields) {
  if (fields.Has("previous_response_id")) {
    return FieldError("previous_response_id",
                      "previous_response_id is not supported: responses are not stored; send the whole conversation as input");
  }
  for (const char* const name : {"conversation", "prompt", "background"}) {
    const Json* const value = fields.Find(name);
    if (value != nullptr && *value != false) return FieldError(name, std::string(name) + " is not supported");
  }
  ASSIGN_OR_RETURN(const auto top_logprobs, fields.Integer("top_logprobs", 0, 20));
  if (top_logprobs.value_or(0) > 0) return FieldError("top_logprobs", "top_logprobs is not supported");
  return absl::OkStatus();
}

// text.format, also in the form of chat completions, which templates read.
absl::StatusOr<std::optional<v1::Constraint>> ReadTextFormat(const JsonFields& fields, ResponsesPlan* responses) {
  ASSIGN_OR_RETURN(const Json* const text, fields.Object("text"));
  const Json* format = nullptr;
  if (text != nullptr) {
    ASSIGN_OR_RETURN(format, JsonFields(*text, "text.").Object("format"));
  }
  if (format == nullptr) return OutputConstraintOf(fields, fields.Find("response_format"), "response_format");
  responses->echo.text_format = *format;
  if (format->value("type", Json()) == "json_schema") {
    responses->plan.chat.response_format = {{"type", "json_schema"}, {"json_schema", *format}};
  }
  return OutputConstraintOf(fields, format, "text.format");
}

// Functions; tools of other kinds are skipped.
absl::Status ReadTools(const JsonFields& fields, ResponsesPlan* responses) {
  ASSIGN_OR_RETURN(const Json* const tools, fields.Array("tools"));
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    const std::string where = absl::StrFormat("tools[%d]", i);
    if (!tool.is_object()) return FieldError(where, where + " is " + DescribeType(tool) + ", want an object");
    if (tool.value("type", Json()) != "function") continue;
    ASSIGN_OR_RETURN(const std::string name, Needed(tool, "name", where));
    Json function = {{"name", name}};
    for (const char* const field : {"description", "parameters", "strict"}) {
      if (const Json* const value = JsonFields(tool).Find(field)) function[field] = *value;
    }
    responses->plan.chat.tools.push_back({{"type", "function"}, {"function", std::move(function)}});
    responses->echo.tools.push_back(tool);
  }
  ASSIGN_OR_RETURN(const ToolChoice choice, ToolChoiceOf(fields));
  if (const Json* const asked = fields.Find("tool_choice")) responses->echo.tool_choice = *asked;
  RETURN_IF_ERROR(KeepChosenTools(choice, &responses->plan.chat.tools));
  ASSIGN_OR_RETURN(std::optional<v1::Constraint> content, ReadTextFormat(fields, responses));
  ASSIGN_OR_RETURN(const auto parallel, fields.Bool("parallel_tool_calls"));
  responses->plan.answer.parallel_tool_calls = responses->echo.parallel_tool_calls = parallel.value_or(true);
  ASSIGN_OR_RETURN(responses->plan.rule,
                   AnswerRuleOf(choice, responses->plan.chat.tools, parallel.value_or(true), std::move(content)));
  return absl::OkStatus();
}

absl::Status ReadConversation(const JsonFields& fields, ResponsesPlan* responses) {
  Json& messages = responses->plan.chat.messages;
  ASSIGN_OR_RETURN(const auto instructions, fields.String("instructions"));
  if (instructions) {
    messages.push_back({{"role", "developer"}, {"content", *instructions}});
    responses->echo.instructions = *instructions;
  }
  const Json* const input = fields.Find("input");
  if (input == nullptr) return FieldError("input", "input is missing: want a string or an array of items");
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
    return absl::OkStatus();
  }
  if (!input->is_array()) return FieldError("input", "input is " + DescribeType(*input) + ", want a string or an array of items");
  ItemReader reader(&messages);
  for (size_t i = 0; i < input->size(); ++i) RETURN_IF_ERROR(reader.Add((*input)[i], absl::StrFormat("input[%d]", i)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ResponsesPlan> ResponsesPlanOf(const Json& body) {
  const JsonFields fields(body);
  ResponsesPlan responses;
  ChatPlan& plan = responses.plan;
  RETURN_IF_ERROR(RefuseUnsupportedOfResponses(fields));
  RETURN_IF_ERROR(ReadConversation(fields, &responses));
  RETURN_IF_ERROR(ReadTools(fields, &responses));
  RETURN_IF_ERROR(ReadSamplingFields(fields, &plan.generation));
  plan.generation.clear_stop();  // a field of other routes
  RETURN_IF_ERROR(ReadMaxTokens(fields, {"max_output_tokens"}, &plan.generation));
  ASSIGN_OR_RETURN(const Json* const reasoning, fields.Object("reasoning"));
  if (reasoning != nullptr) {
    ASSIGN_OR_RETURN(plan.chat.reasoning_effort, JsonFields(*reasoning, "reasoning.").String("effort"));
  }
  ASSIGN_OR_RETURN(const Json* const kwargs, fields.Object("chat_template_kwargs"));
  if (kwargs != nullptr) plan.chat.template_kwargs = *kwargs;
  ASSIGN_OR_RETURN(const auto stream, fields.Bool("stream"));
  plan.answer.stream = responses.echo.stream = stream.value_or(false);
  plan.chat.now = absl::Now();
  for (const auto& [name, to] :
       {std::pair("metadata", &responses.echo.metadata), std::pair("temperature", &responses.echo.temperature),
        std::pair("top_p", &responses.echo.top_p), std::pair("max_output_tokens", &responses.echo.max_output_tokens),
        std::pair("reasoning", &responses.echo.reasoning)}) {
    if (const Json* const value = fields.Find(name)) *to = *value;
  }
  return responses;
}

}  // namespace ferry
