#pragma once

// The fields of requests that fix the form of answers, shared by every route that generates: formats, grammars and tools.
//
// InvalidArgument names the field, and the keyword in it that the constraint library does not support.

#include <optional>
#include <string>

#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "gateway/chat/answer_rule.h"
#include "gateway/json/json.h"

namespace ferry {

// `format`, which each API has in a field of its own (response_format, also with llama-server's "schema"; text.format of
// responses; output_format of Anthropic's messages), or null; `format_field` names it. Beside it, every route takes grammar and
// json_schema (llama-server), structured_outputs and guided_json, guided_regex, guided_choice, guided_grammar (vLLM). One of
// them at most; nothing where the output is free.
absl::StatusOr<std::optional<v1::Constraint>> OutputConstraintOf(const JsonFields& fields, const Json* format,
                                                                 const std::string& format_field);

// Which tools an answer calls.
struct ToolChoice {
  bool none = false;                // the model calls none
  bool required = false;            // the answer is a call
  std::optional<std::string> name;  // of this tool
  std::optional<Json> allowed;      // names of the only tools that may be called
};
// tool_choice of OpenAI's APIs: "auto", "none", "required", {"type": "function", ...} or {"type": "allowed_tools", ...}.
absl::StatusOr<ToolChoice> ToolChoiceOf(const JsonFields& fields);

// Leaves `tools`, in chat completions' form, only those that the template is to show.
absl::Status KeepChosenTools(const ToolChoice& choice, Json* tools);
// The rule for answers that may call `tools`. The schemas of those that are held to them are checked.
absl::StatusOr<AnswerRule> AnswerRuleOf(const ToolChoice& choice, const Json& tools, bool parallel,
                                        std::optional<v1::Constraint> content);

}  // namespace ferry
