#include "gateway/routes/output_rules.h"

#include <algorithm>
#include <utility>

#include "coordinator/constraint/constraint.h"

namespace ferry {
namespace {

using constraint::ConstraintKind;
using constraint::ConstraintSpec;

// Refuses a constraint that the engine would refuse, by the name of its field.
absl::Status Check(const ConstraintSpec& spec, const std::string& field) {
  const absl::Status parsed = constraint::ParseConstraint(spec).status();
  if (parsed.ok()) return parsed;
  return FieldError(field, field + " is not supported: " + std::string(parsed.message()));
}

absl::StatusOr<v1::Constraint> OfSchema(const Json& schema, const std::string& field) {
  if (!schema.is_object() && !schema.is_boolean()) {
    return FieldError(field, field + " is " + DescribeType(schema) + ", want a JSON schema: an object");
  }
  v1::Constraint constraint;
  constraint.set_json_schema(Dump(schema));
  RETURN_IF_ERROR(Check({.kind = ConstraintKind::kJsonSchema, .text = constraint.json_schema()}, field));
  return constraint;
}

absl::StatusOr<v1::Constraint> OfRegex(const std::string& regex, const std::string& field) {
  RETURN_IF_ERROR(Check({.kind = ConstraintKind::kRegex, .text = regex}, field));
  v1::Constraint constraint;
  constraint.set_regex(regex);
  return constraint;
}

absl::StatusOr<v1::Constraint> OfGrammar(const std::string& grammar, const std::string& field) {
  RETURN_IF_ERROR(Check({.kind = ConstraintKind::kGbnf, .text = grammar}, field));
  v1::Constraint constraint;
  constraint.set_gbnf(grammar);
  return constraint;
}

absl::StatusOr<v1::Constraint> OfChoice(const Json& choice, const std::string& field) {
  ConstraintSpec spec = {.kind = ConstraintKind::kChoice};
  v1::Constraint constraint;
  for (const Json& text : choice) {
    if (!text.is_string()) return FieldError(field, field + " has " + DescribeType(text) + ", want strings");
    spec.choices.push_back(text.get<std::string>());
    constraint.mutable_choice()->add_texts(spec.choices.back());
  }
  RETURN_IF_ERROR(Check(spec, field));
  return constraint;
}

// A schema as JSON, or as a string of JSON.
absl::StatusOr<v1::Constraint> OfSchemaOrText(const Json& schema, const std::string& field) {
  if (!schema.is_string()) return OfSchema(schema, field);
  const absl::StatusOr<Json> parsed = ParseJson(schema.get<std::string>());
  if (!parsed.ok()) return FieldError(field, field + " is no JSON: " + std::string(parsed.status().message()));
  return OfSchema(*parsed, field);
}

// The fields of one object that each are a constraint.
class ConstraintFields {
 public:
  // `prefix`: of vLLM's older names.
  ConstraintFields(const JsonFields& fields, std::string prefix) : fields_(fields), prefix_(std::move(prefix)) {}

  absl::Status Read(std::optional<v1::Constraint>* constraint) {
    RETURN_IF_ERROR(Take("json", OfSchemaOrText, constraint));
    RETURN_IF_ERROR(TakeText("regex", OfRegex, constraint));
    RETURN_IF_ERROR(TakeText("grammar", OfGrammar, constraint));
    ASSIGN_OR_RETURN(const Json* const choice, fields_.Array((prefix_ + "choice").c_str()));
    if (choice != nullptr && !choice->empty()) RETURN_IF_ERROR(Take("choice", OfChoice, constraint));
    ASSIGN_OR_RETURN(const auto object, fields_.Bool((prefix_ + "json_object").c_str()));
    if (object.value_or(false)) RETURN_IF_ERROR(Keep(parts::JsonObject(), fields_.PathOf(prefix_ + "json_object"), constraint));
    return absl::OkStatus();
  }

  static absl::Status Keep(absl::StatusOr<v1::Constraint> made, const std::string& field,
                           std::optional<v1::Constraint>* constraint) {
    if (!made.ok()) return made.status();
    if (*constraint) return FieldError(field, field + " is given beside another field that constrains the output");
    *constraint = *std::move(made);
    return absl::OkStatus();
  }

 private:
  template <typename Make>
  absl::Status Take(const char* name, const Make& make, std::optional<v1::Constraint>* constraint) {
    const Json* const value = fields_.Find((prefix_ + name).c_str());
    const std::string field = fields_.PathOf(prefix_ + name);
    return value == nullptr ? absl::OkStatus() : Keep(make(*value, field), field, constraint);
  }
  template <typename Make>
  absl::Status TakeText(const char* name, const Make& make, std::optional<v1::Constraint>* constraint) {
    ASSIGN_OR_RETURN(const auto text, fields_.String((prefix_ + name).c_str()));
    const std::string field = fields_.PathOf(prefix_ + name);
    return !text || text->empty() ? absl::OkStatus() : Keep(make(*text, field), field, constraint);
  }

  const JsonFields& fields_;
  const std::string prefix_;
};

absl::Status ReadLlamaFields(const JsonFields& fields, std::optional<v1::Constraint>* constraint) {
  ASSIGN_OR_RETURN(const auto lazy, fields.Bool("grammar_lazy"));
  if (lazy.value_or(false)) return FieldError("grammar_lazy", "grammar_lazy is not supported");
  ASSIGN_OR_RETURN(const auto grammar, fields.String("grammar"));
  if (grammar && !grammar->empty())
    RETURN_IF_ERROR(ConstraintFields::Keep(OfGrammar(*grammar, "grammar"), "grammar", constraint));
  ASSIGN_OR_RETURN(const Json* const schema, fields.Object("json_schema"));
  if (schema != nullptr && !schema->empty()) {
    RETURN_IF_ERROR(ConstraintFields::Keep(OfSchema(*schema, "json_schema"), "json_schema", constraint));
  }
  return absl::OkStatus();
}

absl::Status WrongChoice(const Json& choice) {
  return FieldError("tool_choice", "tool_choice is " + Dump(choice).substr(0, 80) +
                                       ", want \"auto\", \"none\", \"required\" or the name of a function");
}

// The name of a tool as chat completions ({"function": {"name"}}) and responses ({"name"}) write it.
std::optional<std::string> NameOf(const Json& tool) {
  if (!tool.is_object()) return std::nullopt;
  const Json inner = tool.value("function", tool);
  if (!inner.is_object() || !inner.contains("name") || !inner["name"].is_string()) return std::nullopt;
  return inner["name"].get<std::string>();
}

absl::StatusOr<ToolChoice> AllowedTools(const Json& choice) {
  const Json inner = choice.value("allowed_tools", choice);
  const Json tools = inner.is_object() ? inner.value("tools", Json()) : Json();
  const Json mode = inner.is_object() ? inner.value("mode", Json("auto")) : Json();
  if (!tools.is_array() || (mode != "auto" && mode != "required")) return WrongChoice(choice);
  ToolChoice result = {.required = mode == "required", .allowed = Json::array()};
  for (const Json& tool : tools) {
    const std::optional<std::string> name = NameOf(tool);
    if (!name) return WrongChoice(choice);
    result.allowed->push_back(*name);
  }
  return result;
}

bool Has(const Json& names, const Json& name) { return std::find(names.begin(), names.end(), name) != names.end(); }

absl::StatusOr<std::optional<v1::Constraint>> ConstraintOfFormat(const Json& format, const std::string& field) {
  if (!format.is_object()) return FieldError(field, field + " is " + DescribeType(format) + ", want an object");
  const JsonFields fields(format, field + ".");
  ASSIGN_OR_RETURN(const auto type, fields.String("type"));
  if (!type) return FieldError(field + ".type", field + ".type is missing");
  if (*type == "text") return std::optional<v1::Constraint>();
  if (*type == "json_object" && !fields.Has("schema")) return std::optional(parts::JsonObject());
  if (*type != "json_schema" && *type != "json_object") {
    return FieldError(field + ".type", field + ".type is \"" + type->substr(0, 40) + "\", want text, json_object or json_schema");
  }
  ASSIGN_OR_RETURN(const Json* const nested, fields.Object("json_schema"));
  const Json& holder = nested == nullptr ? format : *nested;
  const std::string name = field + (nested == nullptr ? ".schema" : ".json_schema.schema");
  if (!holder.contains("schema")) return FieldError(name, name + " is missing");
  ASSIGN_OR_RETURN(v1::Constraint constraint, OfSchema(holder["schema"], name));
  return std::optional(std::move(constraint));
}

}  // namespace

absl::StatusOr<std::optional<v1::Constraint>> OutputConstraintOf(const JsonFields& fields, const Json* format,
                                                                 const std::string& format_field) {
  std::optional<v1::Constraint> constraint;
  if (format != nullptr) {
    ASSIGN_OR_RETURN(constraint, ConstraintOfFormat(*format, format_field));
  }
  RETURN_IF_ERROR(ReadLlamaFields(fields, &constraint));
  ASSIGN_OR_RETURN(const Json* const structured, fields.Object("structured_outputs"));
  if (structured != nullptr) {
    const JsonFields inner(*structured, "structured_outputs.");
    if (inner.Has("structural_tag")) {
      return FieldError("structured_outputs.structural_tag", "structured_outputs.structural_tag is not supported");
    }
    RETURN_IF_ERROR(ConstraintFields(inner, "").Read(&constraint));
  }
  RETURN_IF_ERROR(ConstraintFields(fields, "guided_").Read(&constraint));
  return constraint;
}

absl::StatusOr<ToolChoice> ToolChoiceOf(const JsonFields& fields) {
  const Json* const choice = fields.Find("tool_choice");
  if (choice == nullptr || *choice == "auto") return ToolChoice();
  if (*choice == "none") return ToolChoice{.none = true};
  if (*choice == "required") return ToolChoice{.required = true};
  if (!choice->is_object()) return WrongChoice(*choice);
  const Json type = choice->value("type", Json());
  if (type == "allowed_tools") return AllowedTools(*choice);
  const std::optional<std::string> name = NameOf(*choice);
  if (type != "function" || !name) return WrongChoice(*choice);
  return ToolChoice{.required = true, .name = *name};
}

absl::Status KeepChosenTools(const ToolChoice& choice, Json* tools) {
  Json names = Json::array(), kept = Json::array();
  for (const Json& tool : *tools) {
    names.push_back(tool["function"]["name"]);
    if (!choice.none && (!choice.allowed || Has(*choice.allowed, names.back()))) kept.push_back(tool);
  }
  for (const Json& name : choice.name ? Json::array({*choice.name}) : choice.allowed.value_or(Json::array())) {
    if (!Has(names, name)) {
      return FieldError("tool_choice",
                        "tool_choice names the function " + Dump(name).substr(0, 80) + ", which is not among tools");
    }
  }
  if (choice.required && kept.empty()) return FieldError("tool_choice", "tool_choice wants a call and there are no tools");
  *tools = std::move(kept);
  return absl::OkStatus();
}

absl::StatusOr<AnswerRule> AnswerRuleOf(const ToolChoice& choice, const Json& tools, bool parallel,
                                        std::optional<v1::Constraint> content) {
  AnswerRule rule = {.requires_call = choice.required, .parallel = parallel && !choice.name, .content = std::move(content)};
  for (const Json& tool : tools) {
    const Json& function = tool["function"];
    if (choice.name && function["name"] != *choice.name) continue;
    AnswerRule::Tool& added = rule.tools.emplace_back();
    added.name = function["name"].get<std::string>();
    added.parameters = function.value("parameters", Json());
    added.strict = function.value("strict", Json()) == true;
    if (!rule.Holds(added) || added.parameters.is_null()) continue;
    const std::string whose = "tools has the function " + added.name + ", whose parameters are ";
    if (!added.parameters.is_object()) {
      return FieldError("tools", whose + DescribeType(added.parameters) + ", want a JSON schema: an object");
    }
    const ConstraintSpec spec = {.kind = ConstraintKind::kJsonSchema, .text = Dump(added.parameters)};
    if (const absl::Status parsed = constraint::ParseConstraint(spec).status(); !parsed.ok()) {
      return FieldError("tools", whose + "not supported: " + std::string(parsed.message()));
    }
  }
  return rule;
}

}  // namespace ferry
