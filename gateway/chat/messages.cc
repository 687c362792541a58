#include "gateway/chat/messages.h"

#include <string>

namespace ferry {
namespace {

absl::StatusOr<std::string> StringField(const Json& object, const char* name, std::string_view where) {
  const auto field = object.find(name);
  if (field == object.end() || !field->is_string()) return InvalidArgument("%s.%s: a string is wanted", where, name);
  return field->get<std::string>();
}

absl::Status CheckToolCall(const Json& call, std::string_view where) {
  if (!call.is_object()) return InvalidArgument("%s: an object is wanted", where);
  const auto function = call.find("function");
  if (function == call.end() || !function->is_object()) return InvalidArgument("%s.function: an object is wanted", where);
  RETURN_IF_ERROR(StringField(*function, "name", absl::StrFormat("%s.function", where)).status());
  const auto arguments = function->find("arguments");
  if (arguments == function->end() || arguments->is_string() || arguments->is_object()) return absl::OkStatus();
  return InvalidArgument("%s.function.arguments: a string of JSON is wanted", where);
}

absl::StatusOr<Json> CheckedMessage(const Json& message, std::string_view where) {
  if (!message.is_object()) return InvalidArgument("%s: an object is wanted", where);
  RETURN_IF_ERROR(StringField(message, "role", where).status());
  Json checked = message;
  ASSIGN_OR_RETURN(checked["content"], PlainContent(message.value("content", Json()), absl::StrFormat("%s.content", where)));
  if (message.contains("reasoning") && !message.contains("reasoning_content")) {
    checked["reasoning_content"] = message["reasoning"];
  }
  const auto calls = checked.find("tool_calls");
  if (calls == checked.end()) return checked;
  if (calls->is_null() || (calls->is_array() && calls->empty())) {
    checked.erase("tool_calls");  // templates take its presence for calls
    return checked;
  }
  if (!calls->is_array()) return InvalidArgument("%s.tool_calls: a list is wanted", where);
  for (size_t i = 0; i < calls->size(); ++i) {
    RETURN_IF_ERROR(CheckToolCall((*calls)[i], absl::StrFormat("%s.tool_calls[%d]", where, i)));
  }
  return checked;
}

void SetArgumentsForm(bool objects, Json* function) {
  Json& arguments = (*function)["arguments"];
  if (arguments.is_null()) arguments = "";
  if (objects && arguments.is_string()) {
    const std::string& text = arguments.get_ref<const std::string&>();
    Json parsed = text.empty() ? Json::object() : Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object()) arguments = std::move(parsed);
  } else if (!objects && arguments.is_object()) {
    arguments = arguments.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
}

}  // namespace

absl::StatusOr<Json> PlainContent(const Json& content, std::string_view where) {
  if (content.is_null() || content.is_string()) return content;
  if (!content.is_array()) return InvalidArgument("%s: a string or a list of parts is wanted", where);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string type = part.is_object() ? part.value("type", Json("text")).dump() : "";
    const bool is_text = type == "\"text\"" || type == "\"input_text\"" || type == "\"output_text\"";
    if (!is_text) return InvalidArgument("%s[%d]: only parts of the type \"text\" are supported", where, i);
    ASSIGN_OR_RETURN(const std::string more, StringField(part, "text", absl::StrFormat("%s[%d]", where, i)));
    text += more;
  }
  return Json(std::move(text));
}

absl::StatusOr<Json> CheckedMessages(const Json& messages) {
  if (!messages.is_array() || messages.empty()) return InvalidArgument("messages: a list with at least one message is wanted");
  if (messages.size() > kMaxMessages)
    return InvalidArgument("messages: %d of them, at most %d are allowed", messages.size(), kMaxMessages);
  Json checked = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSIGN_OR_RETURN(Json message, CheckedMessage(messages[i], absl::StrFormat("messages[%d]", i)));
    checked.push_back(std::move(message));
  }
  return checked;
}

Json WithForm(const Json& messages, const MessageForm& form) {
  Json formed = messages;
  for (Json& message : formed) {
    if (form.empty_content && message["content"].is_null()) message["content"] = "";
    if (!message.contains("tool_calls")) continue;
    for (Json& call : message["tool_calls"]) SetArgumentsForm(form.object_arguments, &call["function"]);
  }
  return formed;
}

std::set<std::string> FunctionNames(const Json& tools) {
  std::set<std::string> names;
  for (const Json& tool : tools) {
    if (!tool.is_object() || !tool.contains("function") || !tool["function"].is_object()) continue;
    if (const Json name = tool["function"].value("name", Json()); name.is_string()) names.insert(name.get<std::string>());
  }
  return names;
}

const Json* ParameterSchema(const Json& tools, std::string_view function, std::string_view parameter) {
  const auto member = [](const Json* object, std::string_view name) -> const Json* {
    if (object == nullptr || !object->is_object()) return nullptr;
    const auto found = object->find(std::string(name));
    return found == object->end() ? nullptr : &*found;
  };
  for (const Json& tool : tools) {
    const Json* described = member(&tool, "function");
    const Json* name = member(described, "name");
    if (name == nullptr || *name != std::string(function)) continue;
    return member(member(member(described, "parameters"), "properties"), parameter);
  }
  return nullptr;
}

}  // namespace ferry
