// What Anthropic's clients send, as a conversation in OpenAI's form.

#include <utility>

#include "absl/time/clock.h"
#include "gateway/routes/messages.h"
#include "gateway/routes/output_rules.h"
#include "gateway/routes/sampling_fields.h"

namespace ferry {
namespace {

// Claude Code begins its system prompt with a line that changes with every request, and with it the prompt's first tokens.
constexpr std::string_view kBillingHeader = "x-anthropic-billing-header:";

std::string WithoutBillingHeader(std::string text) {
  if (!text.starts_with(kBillingHeader)) return text;
  const size_t end = text.find('\n');
  return end == std::string::npos ? "" : text.substr(end + 1);
}

absl::StatusOr<std::string> TypeOf(const Json& block, const std::string& where) {
  if (!block.is_object()) return FieldError(where, where + " is " + DescribeType(block) + ", want an object");
  ASSIGN_OR_RETURN(const auto type, JsonFields(block, where + ".").String("type"));
  if (!type) return FieldError(where + ".type", where + ".type is missing");
  return *type;
}

absl::StatusOr<std::string> TextOf(const Json& block, const char* name, const std::string& where) {
  ASSIGN_OR_RETURN(const auto text, JsonFields(block, where + ".").String(name));
  if (!text) return FieldError(where + "." + name, where + "." + name + " is missing");
  return *text;
}

absl::Status Unsupported(const std::string& where, const std::string& type) {
  return FieldError(where, where + " has the type \"" + type.substr(0, 40) + "\", which is not supported");
}

// A string, or text blocks one after the other.
absl::StatusOr<std::string> TextOfContent(const Json& content, const std::string& where) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return FieldError(where, where + " is " + DescribeType(content) + ", want a string or content blocks");
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string at = absl::StrFormat("%s[%d]", where, i);
    ASSIGN_OR_RETURN(const std::string type, TypeOf(content[i], at));
    if (type != "text") return Unsupported(at, type);
    ASSIGN_OR_RETURN(std::string part, TextOf(content[i], "text", at));
    part = WithoutBillingHeader(std::move(part));
    if (!text.empty() && !part.empty()) text += '\n';
    text += part;
  }
  return text;
}

// The blocks of one message become one message of OpenAI's, and one before it for each tool result.
class BlockReader {
 public:
  BlockReader(const std::string& role, Json* messages) : role_(role), messages_(*messages) {}

  absl::Status Add(const Json& block, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string type, TypeOf(block, where));
    if (type == "text") return AddText(block, where);
    if (type == "tool_result" && role_ == "user") return AddResult(block, where);
    if (type == "tool_use" && role_ == "assistant") return AddCall(block, where);
    if (type == "thinking" && role_ == "assistant") {
      ASSIGN_OR_RETURN(const std::string thinking, TextOf(block, "thinking", where));
      reasoning_ += thinking;
      return absl::OkStatus();
    }
    if (type == "redacted_thinking") return absl::OkStatus();  // of another server: nobody here can read it
    return Unsupported(where, type);
  }

  void Finish() {
    if (!has_text_ && calls_.empty() && reasoning_.empty()) return;
    Json message = {{"role", role_}, {"content", has_text_ ? Json(text_) : Json()}};
    if (!reasoning_.empty()) message["reasoning_content"] = reasoning_;
    if (!calls_.empty()) message["tool_calls"] = calls_;
    messages_.push_back(std::move(message));
  }

 private:
  absl::Status AddText(const Json& block, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string text, TextOf(block, "text", where));
    if (has_text_) text_ += '\n';
    text_ += text;
    has_text_ = true;
    return absl::OkStatus();
  }
  absl::Status AddResult(const Json& block, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string id, TextOf(block, "tool_use_id", where));
    ASSIGN_OR_RETURN(const std::string content, TextOfContent(block.value("content", Json()), where + ".content"));
    messages_.push_back({{"role", "tool"}, {"tool_call_id", id}, {"content", content}});
    return absl::OkStatus();
  }
  absl::Status AddCall(const Json& block, const std::string& where) {
    ASSIGN_OR_RETURN(const std::string id, TextOf(block, "id", where));
    ASSIGN_OR_RETURN(const std::string name, TextOf(block, "name", where));
    ASSIGN_OR_RETURN(const Json* const input, JsonFields(block, where + ".").Object("input"));
    const std::string arguments = input == nullptr ? "{}" : Dump(*input);
    calls_.push_back({{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}});
    return absl::OkStatus();
  }

  const std::string& role_;
  Json& messages_;
  std::string text_, reasoning_;
  bool has_text_ = false;
  Json calls_ = Json::array();
};

absl::Status AddMessage(const Json& message, const std::string& where, Json* messages) {
  if (!message.is_object()) return FieldError(where, where + " is " + DescribeType(message) + ", want an object");
  ASSIGN_OR_RETURN(const std::string role, TextOf(message, "role", where));
  if (role != "user" && role != "assistant" && role != "system") {
    return FieldError(where + ".role", where + ".role is \"" + role.substr(0, 40) + "\", want \"user\" or \"assistant\"");
  }
  const Json* const content = JsonFields(message).Find("content");
  if (content == nullptr) return FieldError(where + ".content", where + ".content is missing");
  if (content->is_string()) {
    messages->push_back({{"role", role}, {"content", *content}});
    return absl::OkStatus();
  }
  if (!content->is_array())
    return FieldError(where + ".content", where + ".content is " + DescribeType(*content) + ", want a string or content blocks");
  BlockReader reader(role, messages);
  for (size_t i = 0; i < content->size(); ++i)
    RETURN_IF_ERROR(reader.Add((*content)[i], absl::StrFormat("%s.content[%d]", where, i)));
  reader.Finish();
  return absl::OkStatus();
}

// Tools that the server itself would have to run (web search, a computer) are left out, as the model cannot use them here.
absl::StatusOr<Json> ClientToolsOf(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const Json* const tools, fields.Array("tools"));
  Json functions = Json::array();
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    const std::string where = absl::StrFormat("tools[%d]", i);
    const Json& tool = (*tools)[i];
    if (!tool.is_object()) return FieldError(where, where + " is " + DescribeType(tool) + ", want an object");
    if (const Json type = tool.value("type", Json("custom")); !type.is_null() && type != "custom") continue;
    ASSIGN_OR_RETURN(const std::string name, TextOf(tool, "name", where));
    ASSIGN_OR_RETURN(const auto description, JsonFields(tool, where + ".").String("description"));
    ASSIGN_OR_RETURN(const Json* const schema, JsonFields(tool, where + ".").Object("input_schema"));
    Json function = {{"name", name}};
    if (description) function["description"] = *description;
    function["parameters"] = schema == nullptr ? Json::object() : *schema;
    if (const Json* const strict = JsonFields(tool).Find("strict")) function["strict"] = *strict;
    functions.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return functions;
}

absl::StatusOr<ToolChoice> ReadToolChoice(const JsonFields& fields, ChatPlan* plan) {
  ASSIGN_OR_RETURN(const Json* const choice, fields.Object("tool_choice"));
  if (choice == nullptr) return ToolChoice();
  const JsonFields inner(*choice, "tool_choice.");
  ASSIGN_OR_RETURN(const auto type, inner.String("type"));
  ASSIGN_OR_RETURN(const auto single, inner.Bool("disable_parallel_tool_use"));
  plan->answer.parallel_tool_calls = !single.value_or(false);
  if (type == "auto") return ToolChoice();
  if (type == "none") return ToolChoice{.none = true};
  if (type == "any") return ToolChoice{.required = true};
  ASSIGN_OR_RETURN(const auto name, inner.String("name"));
  if (type == "tool" && name) return ToolChoice{.required = true, .name = *name};
  return FieldError("tool_choice", "tool_choice is " + Dump(*choice).substr(0, 80) +
                                       ", want the type \"auto\", \"any\", \"none\", or \"tool\" with a name");
}

// output_config.format, and output_format as it was called before.
absl::StatusOr<std::optional<v1::Constraint>> ReadOutputFormat(const JsonFields& fields, ChatPlan* plan) {
  ASSIGN_OR_RETURN(const Json* const config, fields.Object("output_config"));
  ASSIGN_OR_RETURN(const Json* const older, fields.Object("output_format"));
  const bool newer = config != nullptr && JsonFields(*config).Has("format");
  const Json* const format = newer ? &(*config)["format"] : older;
  if (format != nullptr && format->is_object()) {
    plan->chat.response_format = {{"type", "json_schema"}, {"json_schema", *format}};
  }
  return OutputConstraintOf(fields, format, newer ? "output_config.format" : "output_format");
}

// output_config.effort; "high" is the most that templates know.
absl::Status ReadEffort(const JsonFields& fields, ChatPlan* plan) {
  ASSIGN_OR_RETURN(const Json* const config, fields.Object("output_config"));
  if (config == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto effort, JsonFields(*config, "output_config.").String("effort"));
  if (effort) plan->chat.reasoning_effort = *effort == "max" || *effort == "xhigh" ? "high" : *effort;
  return absl::OkStatus();
}

absl::Status ReadThinking(const JsonFields& fields, ChatPlan* plan) {
  ASSIGN_OR_RETURN(const Json* const thinking, fields.Object("thinking"));
  if (thinking == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto type, JsonFields(*thinking, "thinking.").String("type"));
  if (type == "disabled") plan->chat.reasoning_effort = "none";
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChatPlan> MessagesPlanOf(const Json& body, bool count_only) {
  const JsonFields fields(body);
  ChatPlan plan;
  plan.form = ApiForm::kAnthropic;
  if (const Json* const system = fields.Find("system"); system != nullptr) {
    ASSIGN_OR_RETURN(std::string text, TextOfContent(*system, "system"));
    text = WithoutBillingHeader(std::move(text));
    if (!text.empty()) plan.chat.messages.push_back({{"role", "system"}, {"content", text}});
  }
  ASSIGN_OR_RETURN(const Json* const messages, fields.Array("messages"));
  if (messages == nullptr || messages->empty()) return FieldError("messages", "messages is missing: want at least one message");
  for (size_t i = 0; i < messages->size(); ++i) {
    RETURN_IF_ERROR(AddMessage((*messages)[i], absl::StrFormat("messages[%d]", i), &plan.chat.messages));
  }
  ASSIGN_OR_RETURN(plan.chat.tools, ClientToolsOf(fields));
  ASSIGN_OR_RETURN(const ToolChoice choice, ReadToolChoice(fields, &plan));
  RETURN_IF_ERROR(KeepChosenTools(choice, &plan.chat.tools));
  ASSIGN_OR_RETURN(std::optional<v1::Constraint> content, ReadOutputFormat(fields, &plan));
  ASSIGN_OR_RETURN(plan.rule, AnswerRuleOf(choice, plan.chat.tools, plan.answer.parallel_tool_calls, std::move(content)));
  RETURN_IF_ERROR(ReadEffort(fields, &plan));
  RETURN_IF_ERROR(ReadThinking(fields, &plan));
  plan.chat.now = absl::Now();
  if (count_only) return plan;

  RETURN_IF_ERROR(ReadSamplingFields(fields, &plan.generation));
  plan.generation.clear_stop();  // OpenAI's name, which Anthropic does not know
  ASSIGN_OR_RETURN(plan.answer.stops, fields.Strings("stop_sequences", kMaxStops));
  ASSIGN_OR_RETURN(const auto stream, fields.Bool("stream"));
  plan.answer.stream = stream.value_or(false);
  ASSIGN_OR_RETURN(const auto max_tokens, fields.Integer("max_tokens", 1, INT32_MAX));
  if (!max_tokens) return FieldError("max_tokens", "max_tokens is missing");
  plan.generation.set_max_tokens(static_cast<uint32_t>(*max_tokens));
  return plan;
}

}  // namespace ferry
