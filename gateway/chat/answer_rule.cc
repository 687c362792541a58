#include "gateway/chat/answer_rule.h"

#include <algorithm>
#include <utility>

namespace ferry {

bool AnswerRule::IsFree() const {
  return !requires_call && !content && std::none_of(tools.begin(), tools.end(), [](const Tool& tool) { return tool.strict; });
}

namespace parts {

v1::Constraint Literal(std::string_view text) {
  v1::Constraint part;
  part.set_literal(std::string(text));
  return part;
}

v1::Constraint Text(const std::vector<std::string_view>& without) {
  v1::Constraint part;
  v1::Constraint::Text* const text = part.mutable_text();
  for (const std::string_view tag : without) text->add_without(std::string(tag));
  return part;
}

v1::Constraint JsonObject() {
  v1::Constraint part;
  part.set_json_object(true);
  return part;
}

v1::Constraint Schema(const Json& schema) {
  v1::Constraint part;
  part.set_json_schema(schema.dump(-1, ' ', false, Json::error_handler_t::replace));
  return part;
}

v1::Constraint Sequence(std::vector<v1::Constraint> sequence) {
  v1::Constraint part;
  for (v1::Constraint& next : sequence) *part.mutable_sequence()->add_parts() = std::move(next);
  return part;
}

v1::Constraint AnyOf(std::vector<v1::Constraint> ways) {
  if (ways.size() == 1) return std::move(ways[0]);
  v1::Constraint part;
  for (v1::Constraint& way : ways) *part.mutable_any_of()->add_parts() = std::move(way);
  return part;
}

v1::Constraint Repeat(v1::Constraint repeated, uint32_t min, std::optional<uint32_t> max) {
  v1::Constraint part;
  part.mutable_repeat()->set_min(min);
  if (max) part.mutable_repeat()->set_max(*max);
  *part.mutable_repeat()->mutable_part() = std::move(repeated);
  return part;
}

v1::Constraint Optional(v1::Constraint part) { return Repeat(std::move(part), 0, 1); }

v1::Constraint Space() { return AnyOf({Literal(""), Literal(" "), Literal("\n"), Literal("\n\n")}); }

v1::Constraint Tag(const SpecialTokens& special_tokens, std::string_view tag) {
  const std::optional<int32_t> id = special_tokens.Find(tag);
  if (!id) return Literal(tag);
  v1::Constraint part;
  part.set_token(static_cast<uint32_t>(*id));
  return part;
}

v1::Constraint Arguments(const AnswerRule& rule, const AnswerRule::Tool& tool) {
  if (!rule.Holds(tool)) return JsonObject();
  if (tool.parameters.is_null()) return Literal("{}");
  if (!tool.parameters.is_object() || tool.parameters.empty()) return JsonObject();
  Json schema = tool.parameters;
  bool says_type = false;
  for (const char* const keyword : {"type", "$ref", "anyOf", "oneOf", "allOf"}) says_type = says_type || schema.contains(keyword);
  if (!says_type) schema["type"] = "object";
  return Schema(schema);
}

}  // namespace parts
}  // namespace ferry
