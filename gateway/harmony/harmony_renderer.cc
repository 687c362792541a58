#include "gateway/harmony/harmony_renderer.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/chat/messages.h"
#include "gateway/harmony/typescript.h"
#include "gateway/template/marked_string.h"

namespace ferry {
namespace {

using jinja::MarkedString;

constexpr std::string_view kIdentity = "You are ChatGPT, a large language model trained by OpenAI.";
constexpr std::string_view kKnowledgeCutoff = "2024-06";

std::string TextOf(const Json& object, const char* name) {
  const auto field = object.find(name);
  return field != object.end() && field->is_string() ? field->get<std::string>() : "";
}

bool IsInstruction(const Json& message) { return message["role"] == "system" || message["role"] == "developer"; }
bool IsFinal(const Json& message) { return message["role"] == "assistant" && !message.contains("tool_calls"); }

class HarmonyRenderer {
 public:
  explicit HarmonyRenderer(const ChatRequest& request) : request_(request) {}

  absl::StatusOr<ChatPrompt> Render() {
    ASSIGN_OR_RETURN(const Json messages, CheckedMessages(request_.messages));
    if (!request_.tools.is_array()) return InvalidArgument("tools: a list is wanted");
    RETURN_IF_ERROR(WriteSystem());
    size_t at = 0;
    MarkedString instructions;
    for (; at < messages.size() && IsInstruction(messages[at]); ++at) {
      if (!instructions.empty()) Put("\n\n", &instructions);
      instructions.Append(TextOf(messages[at], "content"), true);
    }
    RETURN_IF_ERROR(WriteDeveloper(instructions, /*first=*/true));
    size_t last_final = 0;  // one behind it
    for (size_t i = at; i < messages.size(); ++i) last_final = IsFinal(messages[i]) ? i + 1 : last_final;
    for (; at < messages.size(); ++at) {
      RETURN_IF_ERROR(
          Annotate(WriteMessage(messages[at], /*with_reasoning=*/at >= last_final), absl::StrFormat("messages[%d]", at)));
    }
    if (request_.add_generation_prompt) Put("<|start|>assistant");
    return ChatPrompt{out_.Pieces()};
  }

 private:
  static void Put(std::string_view text, MarkedString* to) { to->Append(text, false); }
  void Put(std::string_view text) { Put(text, &out_); }
  void PutUsers(std::string_view text) { out_.Append(text, true); }

  absl::Status WriteSystem() {
    const std::string effort = request_.reasoning_effort.value_or(
        request_.template_kwargs.is_object() ? request_.template_kwargs.value("reasoning_effort", std::string("medium"))
                                             : "medium");
    std::string level = effort;
    if (effort == "minimal" || effort == "none") level = "low";  // the least that the model knows
    if (effort == "xhigh") level = "high";                       // the most
    if (level != "low" && level != "medium" && level != "high") {
      return InvalidArgument("reasoning_effort is \"%s\", want low, medium or high", effort);
    }
    Put("<|start|>system<|message|>");
    Put(kIdentity);
    Put(absl::StrFormat("\nKnowledge cutoff: %s\nCurrent date: %s\n\nReasoning: %s\n\n", kKnowledgeCutoff,
                        absl::FormatTime("%Y-%m-%d", request_.now, absl::UTCTimeZone()), level));
    Put("# Valid channels: analysis, commentary, final. Channel must be included for every message.");
    if (!request_.tools.empty()) Put("\nCalls to these tools must go to the commentary channel: 'functions'.");
    Put("<|end|>");
    return absl::OkStatus();
  }

  // The sections that there are; no message without any.
  absl::Status WriteDeveloper(const MarkedString& instructions, bool first) {
    std::vector<MarkedString> sections;
    if (!instructions.empty()) {
      MarkedString section("# Instructions\n\n");
      section.Append(instructions);
      sections.push_back(std::move(section));
    }
    if (first && !request_.tools.empty()) {
      ASSIGN_OR_RETURN(MarkedString section, ToolsSection());
      sections.push_back(std::move(section));
    }
    if (first && request_.response_format.is_object() && TextOf(request_.response_format, "type") == "json_schema") {
      ASSIGN_OR_RETURN(MarkedString section, ResponseFormatSection());
      sections.push_back(std::move(section));
    }
    if (sections.empty()) return absl::OkStatus();
    Put("<|start|>developer<|message|>");
    for (size_t i = 0; i < sections.size(); ++i) {
      if (i > 0) Put("\n\n");
      out_.Append(sections[i]);
    }
    Put("<|end|>");
    return absl::OkStatus();
  }

  absl::StatusOr<MarkedString> ToolsSection() const {
    MarkedString section("# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for (size_t i = 0; i < request_.tools.size(); ++i) {
      const Json& tool = request_.tools[i];
      const auto function = tool.is_object() ? tool.find("function") : tool.end();
      if (!tool.is_object() || function == tool.end() || !function->is_object() || TextOf(*function, "name").empty()) {
        return InvalidArgument("tools[%d].function.name: a string is wanted", i);
      }
      WriteTool(*function, &section);
    }
    Put("} // namespace functions", &section);
    return section;
  }

  static void WriteTool(const Json& function, MarkedString* section) {
    const std::string description = TextOf(function, "description");
    for (size_t begin = 0; begin < description.size();) {
      const size_t end = std::min(description.find('\n', begin), description.size());
      Put("// ", section);
      section->Append(description.substr(begin, end - begin), true);
      Put("\n", section);
      begin = end + 1;
    }
    Put("type ", section);
    section->Append(TextOf(function, "name"), true);
    const auto parameters = function.find("parameters");
    if (parameters == function.end() || parameters->is_null()) return Put(" = () => any;\n\n", section);
    Put(" = (_: ", section);
    section->Append(TypeScriptType(*parameters));
    Put(") => any;\n\n", section);
  }

  absl::StatusOr<MarkedString> ResponseFormatSection() const {
    const auto format = request_.response_format.find("json_schema");
    if (format == request_.response_format.end() || !format->is_object() || !format->contains("schema")) {
      return InvalidArgument("response_format.json_schema.schema: an object is wanted");
    }
    MarkedString section("# Response Formats\n\n## ");
    const std::string name = TextOf(*format, "name"), description = TextOf(*format, "description");
    section.Append(name.empty() ? "response" : name, true);
    Put("\n\n", &section);
    if (!description.empty()) {
      Put("// ", &section);
      section.Append(description, true);
      Put("\n", &section);
    }
    section.Append((*format)["schema"].dump(-1, ' ', false, Json::error_handler_t::replace), true);
    return section;
  }

  absl::Status WriteMessage(const Json& message, bool with_reasoning) {
    const std::string role = TextOf(message, "role"), content = TextOf(message, "content");
    if (IsInstruction(message)) return WriteDeveloper(MarkedString(content, true), /*first=*/false);
    if (role == "assistant") return WriteAssistant(message, content, with_reasoning);
    if (role == "tool" || role == "function") return WriteToolResult(message, content);
    if (role != "user") return InvalidArgument("the role is \"%s\", want system, developer, user, assistant or tool", role);
    Put("<|start|>user");
    if (const std::string name = TextOf(message, "name"); !name.empty()) {
      Put(":");
      PutUsers(name);
    }
    WriteContent("", content, "<|end|>");
    return absl::OkStatus();
  }

  void WriteContent(std::string_view header, std::string_view content, std::string_view end) {
    Put(header);
    Put("<|message|>");
    PutUsers(content);
    Put(end);
  }

  absl::Status WriteAssistant(const Json& message, const std::string& content, bool with_reasoning) {
    const std::string reasoning = TextOf(message, "reasoning_content");
    if (with_reasoning && !reasoning.empty()) WriteContent("<|start|>assistant<|channel|>analysis", reasoning, "<|end|>");
    if (!message.contains("tool_calls")) {
      WriteContent("<|start|>assistant<|channel|>final", content, "<|end|>");
      return absl::OkStatus();
    }
    if (!content.empty()) WriteContent("<|start|>assistant<|channel|>commentary", content, "<|end|>");
    for (const Json& call : message["tool_calls"]) {
      const Json& function = call["function"];
      const std::string name = TextOf(function, "name");
      if (const std::string id = TextOf(call, "id"); !id.empty()) names_by_id_[id] = name;
      last_called_ = name;
      const Json arguments = function.value("arguments", Json(""));
      Put("<|start|>assistant to=functions.");
      PutUsers(name);
      WriteContent(
          "<|channel|>commentary <|constrain|>json",
          arguments.is_string() ? arguments.get<std::string>() : arguments.dump(-1, ' ', false, Json::error_handler_t::replace),
          "<|call|>");
    }
    return absl::OkStatus();
  }

  absl::Status WriteToolResult(const Json& message, const std::string& content) {
    const auto known = names_by_id_.find(TextOf(message, "tool_call_id"));
    std::string name = known != names_by_id_.end() ? known->second : TextOf(message, "name");
    if (name.empty()) name = last_called_;
    if (name.empty())
      return InvalidArgument("the result belongs to no tool call of an earlier message: tool_call_id is not known");
    Put("<|start|>functions.");
    PutUsers(name);
    WriteContent(" to=assistant<|channel|>commentary", content, "<|end|>");
    return absl::OkStatus();
  }

  const ChatRequest& request_;
  MarkedString out_;
  std::map<std::string, std::string> names_by_id_;  // of tool calls
  std::string last_called_;
};

}  // namespace

absl::StatusOr<ChatPrompt> RenderHarmony(const ChatRequest& request) { return HarmonyRenderer(request).Render(); }

}  // namespace ferry
