#pragma once

// JSON schemas as the TypeScript types in which gpt-oss is told about its tools.

#include "gateway/chat/chat_format.h"
#include "gateway/template/marked_string.h"

namespace ferry {

// The type of values that `schema` allows, as openai-harmony writes it. The names and texts of the schema are marked as
// a user's. Below 64 levels of nesting everything is "any".
jinja::MarkedString TypeScriptType(const Json& schema);

}  // namespace ferry
