#include "gateway/parsers/call_constraints.h"

#include <algorithm>
#include <utility>

#include "gateway/parsers/keyed_calls.h"
#include "gateway/parsers/section_calls.h"

namespace ferry {
namespace {

using parts::AnyOf;
using parts::Literal;
using parts::Optional;
using parts::Repeat;
using parts::Sequence;
using parts::Space;
using parts::Tag;
using parts::Text;

std::string Quoted(const std::string& text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

// Calls one after the other.
v1::Constraint Calls(const AnswerRule& rule, const v1::Constraint& call) {
  if (!rule.parallel) return call;
  return Sequence({call, Repeat(Sequence({Space(), call}), 0)});
}

// Calls whose arguments are written one by one between tags.
class KeyedRules {
 public:
  KeyedRules(const KeyedTags& tags, const SpecialTokens& special_tokens) : tags_(tags), special_tokens_(special_tokens) {}

  // All arguments of a call, each with white space behind it.
  absl::StatusOr<v1::Constraint> Arguments(const AnswerRule& rule, const AnswerRule::Tool& tool) const {
    if (!rule.Holds(tool)) return Optional(Sequence({Tag(special_tokens_, tags_.key_open), Text(tags_.close)}));
    if (tool.parameters.is_null() || tool.parameters.empty()) return Literal("");
    const Json& schema = tool.parameters;
    for (const char* const keyword : {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"}) {
      if (schema.contains(keyword)) {
        return Refuse(tool, std::string("#/") + keyword + " cannot be kept: this model writes arguments one by one");
      }
    }
    std::vector<v1::Constraint> arguments;
    const Json required = schema.value("required", Json::array());
    const Json properties = schema.value("properties", Json::object());
    for (const Json& name : required) {
      if (!properties.contains(name.get<std::string>())) {
        return Refuse(tool, "#/required: " + name.get<std::string>() + " is not among the properties");
      }
    }
    for (const auto& [name, property] : properties.items()) {
      absl::StatusOr<v1::Constraint> value = Value(tool, name, property);
      if (!value.ok()) return value;
      v1::Constraint argument =
          Sequence({Tag(special_tokens_, tags_.key_open), Literal(name), Tag(special_tokens_, tags_.key_close), ValueOpen(),
                    *std::move(value), ValueClose(), Space()});
      const bool needed = std::find(required.begin(), required.end(), Json(name)) != required.end();
      arguments.push_back(needed ? std::move(argument) : Optional(std::move(argument)));
    }
    return Sequence(std::move(arguments));
  }

 private:
  static absl::Status Refuse(const AnswerRule::Tool& tool, const std::string& why) {
    return InvalidArgument("tools: the parameters of %s: %s", tool.name, why);
  }

  v1::Constraint ValueOpen() const {
    if (tags_.value_open.empty()) return Literal(tags_.strips_newlines ? "\n" : "");
    return Sequence({Space(), Tag(special_tokens_, tags_.value_open)});
  }
  v1::Constraint ValueClose() const {
    return Sequence({Literal(tags_.strips_newlines ? "\n" : ""), Tag(special_tokens_, tags_.value_close)});
  }

  // A string is written plainly, anything else as JSON.
  absl::StatusOr<v1::Constraint> Value(const AnswerRule::Tool& tool, const std::string& name, const Json& schema) const {
    if (schema.is_object() && schema.value("type", Json()) == "string") return PlainString(tool, name, schema);
    if (!schema.is_object()) return parts::Schema(schema);
    Json whole = schema;
    for (const char* const definitions : {"$defs", "definitions"}) {
      if (tool.parameters.contains(definitions) && !whole.contains(definitions))
        whole[definitions] = tool.parameters[definitions];
    }
    return parts::Schema(whole);
  }

  absl::StatusOr<v1::Constraint> PlainString(const AnswerRule::Tool& tool, const std::string& name, const Json& schema) const {
    const std::string where = "#/properties/" + name;
    if (schema.contains("enum") || schema.contains("const")) return Choice(tool, where, schema);
    for (const char* const keyword : {"$ref", "anyOf", "oneOf", "allOf", "nullable"}) {
      if (schema.contains(keyword)) return Refuse(tool, where + ": " + keyword + " beside the type string is not supported");
    }
    v1::Constraint value = Text({tags_.value_close});
    v1::Constraint::Text& text = *value.mutable_text();
    for (const char* const keyword : {"minLength", "maxLength"}) {
      if (!schema.contains(keyword)) continue;
      if (!schema[keyword].is_number_unsigned() || schema[keyword] > 2000) {
        return Refuse(tool, where + ": " + keyword + " is not a whole number up to 2000, the most for text between tags");
      }
      const auto length = schema[keyword].get<uint32_t>();
      keyword == std::string_view("minLength") ? text.set_min_length(length) : text.set_max_length(length);
    }
    if (schema.contains("pattern") && schema["pattern"].is_string()) text.set_pattern(schema["pattern"].get<std::string>());
    if (schema.contains("format") && schema["format"].is_string()) text.set_format(schema["format"].get<std::string>());
    return value;
  }

  absl::StatusOr<v1::Constraint> Choice(const AnswerRule::Tool& tool, const std::string& where, const Json& schema) const {
    const Json values = schema.contains("enum") ? schema["enum"] : Json::array({schema["const"]});
    std::vector<v1::Constraint> ways;
    for (const Json& value : values) {
      if (!value.is_string()) continue;  // it is none of the type
      const auto text = value.get<std::string>();
      if (text.find(tags_.value_close) != std::string::npos) {
        return Refuse(tool, where + ": a value that holds " + std::string(tags_.value_close) + " cannot be written");
      }
      ways.push_back(Literal(text));
    }
    if (ways.empty()) return Refuse(tool, where + ": no string is among its values");
    return AnyOf(std::move(ways));
  }

  const KeyedTags tags_;
  const SpecialTokens& special_tokens_;
};

}  // namespace

absl::StatusOr<v1::Constraint> JsonCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens) {
  std::vector<v1::Constraint> ways;
  for (const AnswerRule::Tool& tool : rule.tools) {
    ways.push_back(
        Sequence({Literal("{\"name\": " + Quoted(tool.name) + ", \"arguments\": "), parts::Arguments(rule, tool), Literal("}")}));
  }
  return Calls(rule, Sequence({Tag(special_tokens, "<tool_call>"), Space(), AnyOf(std::move(ways)), Space(),
                               Tag(special_tokens, "</tool_call>")}));
}

absl::StatusOr<v1::Constraint> GlmCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens) {
  const KeyedRules rules(GlmTags(), special_tokens);
  std::vector<v1::Constraint> ways;
  for (const AnswerRule::Tool& tool : rule.tools) {
    ASSIGN_OR_RETURN(v1::Constraint arguments, rules.Arguments(rule, tool));
    ways.push_back(Sequence({Literal(tool.name), Space(), std::move(arguments)}));
  }
  return Calls(rule, Sequence({Tag(special_tokens, "<tool_call>"), AnyOf(std::move(ways)), Tag(special_tokens, "</tool_call>")}));
}

absl::StatusOr<v1::Constraint> QwenXmlCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens) {
  const KeyedRules rules(QwenXmlTags(), special_tokens);
  std::vector<v1::Constraint> ways;
  for (const AnswerRule::Tool& tool : rule.tools) {
    ASSIGN_OR_RETURN(v1::Constraint arguments, rules.Arguments(rule, tool));
    ways.push_back(Sequence({Literal("<function=" + tool.name + ">\n"), std::move(arguments), Literal("</function>")}));
  }
  return Calls(rule, Sequence({Tag(special_tokens, "<tool_call>"), Space(), AnyOf(std::move(ways)), Space(),
                               Tag(special_tokens, "</tool_call>")}));
}

absl::StatusOr<v1::Constraint> DeepSeekCallsUnder(const AnswerRule& rule, bool fenced, const SpecialTokens& special_tokens) {
  const SectionTags tags = DeepSeekTags();
  std::vector<v1::Constraint> ways;
  for (const AnswerRule::Tool& tool : rule.tools) {
    const v1::Constraint separator = Tag(special_tokens, tags.separator), arguments = parts::Arguments(rule, tool);
    ways.push_back(
        fenced ? Sequence({Literal("function"), separator, Literal(tool.name + "\n```json\n"), arguments, Literal("\n```")})
               : Sequence({Literal(tool.name), separator, arguments}));
  }
  const v1::Constraint call =
      Sequence({Tag(special_tokens, tags.call_begin), AnyOf(std::move(ways)), Tag(special_tokens, tags.call_end)});
  return Sequence({Tag(special_tokens, tags.section_begin), Calls(rule, call), Tag(special_tokens, tags.section_end)});
}

absl::StatusOr<v1::Constraint> KimiCallsUnder(const AnswerRule& rule, const SpecialTokens& special_tokens) {
  const SectionTags tags = KimiTags();
  v1::Constraint number;
  number.set_regex("[0-9]{1,3}");
  std::vector<v1::Constraint> ways;
  for (const AnswerRule::Tool& tool : rule.tools) {
    ways.push_back(Sequence(
        {Literal("functions." + tool.name + ":"), number, Tag(special_tokens, tags.separator), parts::Arguments(rule, tool)}));
  }
  const v1::Constraint call =
      Sequence({Tag(special_tokens, tags.call_begin), AnyOf(std::move(ways)), Tag(special_tokens, tags.call_end)});
  return Sequence({Tag(special_tokens, tags.section_begin), Calls(rule, call), Tag(special_tokens, tags.section_end)});
}

}  // namespace ferry
