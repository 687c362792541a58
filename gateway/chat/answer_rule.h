#pragma once

// The form that an answer has to have, and parts from which a format makes a constraint for the engine.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "ferry/v1/generate.pb.h"
#include "gateway/chat/chat_format.h"

namespace ferry {

struct AnswerRule {
  struct Tool {
    std::string name;
    Json parameters;      // a JSON schema of an object; null: there are none
    bool strict = false;  // its arguments match the schema whenever it is called
  };
  std::vector<Tool> tools;                // those that may be called
  bool requires_call = false;             // the answer is calls; their arguments match the schemas
  bool parallel = true;                   // there may be several calls
  std::optional<v1::Constraint> content;  // the form of the answer's text where it is no call; missing: any text

  // The model may answer as it likes.
  bool IsFree() const;
  // The tool's arguments have to match its schema.
  bool Holds(const Tool& tool) const { return requires_call || tool.strict; }
};

// Parts of constraints.
namespace parts {

v1::Constraint Literal(std::string_view text);
// Text without special tokens that has none of `without` in it.
v1::Constraint Text(const std::vector<std::string_view>& without = {});
v1::Constraint JsonObject();
v1::Constraint Schema(const Json& schema);
v1::Constraint Sequence(std::vector<v1::Constraint> parts);
v1::Constraint AnyOf(std::vector<v1::Constraint> ways);
v1::Constraint Repeat(v1::Constraint part, uint32_t min, std::optional<uint32_t> max = std::nullopt);
v1::Constraint Optional(v1::Constraint part);
// White space as models write it around tags: none, a space, a line's end or two.
v1::Constraint Space();
// A tag of a format: its token where the vocabulary has one, else its text.
v1::Constraint Tag(const SpecialTokens& special_tokens, std::string_view tag);
// The arguments of a call as JSON: by the schema where the rule holds the tool to it, else any object.
v1::Constraint Arguments(const AnswerRule& rule, const AnswerRule::Tool& tool);

}  // namespace parts
}  // namespace ferry
