#pragma once

// The messages of a request in the forms that templates expect.

#include <set>
#include <string>
#include <string_view>

#include "common/status.h"
#include "gateway/chat/chat_format.h"

namespace ferry {

inline constexpr size_t kMaxMessages = 100'000;

// Text parts of a content as one string; null for a null or missing content. InvalidArgument: a part that is no text;
// the message begins with `where`, as "messages[3].content".
absl::StatusOr<Json> PlainContent(const Json& content, std::string_view where);

// Checked messages: an array of objects, each with a role that is a string, a plain content, and tool calls that are
// objects with a function whose name and arguments are strings (or arguments an object).
// InvalidArgument names the field.
absl::StatusOr<Json> CheckedMessages(const Json& messages);

struct MessageForm {
  bool object_arguments = true;  // arguments of tool calls as JSON objects, where they are; else as strings
  bool empty_content = false;    // a missing content is an empty string; else null
};
// CheckedMessages in another form.
Json WithForm(const Json& messages, const MessageForm& form);

// The names of the functions among `tools`.
std::set<std::string> FunctionNames(const Json& tools);
// The schema of a parameter of a function; null where it is not known.
const Json* ParameterSchema(const Json& tools, std::string_view function, std::string_view parameter);

}  // namespace ferry
