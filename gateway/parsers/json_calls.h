#pragma once

// Tool calls as JSON between tags, as Qwen3 and Hermes write them:
//
//   <tool_call> {"name": NAME, "arguments": {...}} </tool_call>
//
// Arguments are told while they are written when the name comes first; otherwise when the call is complete.

#include <string>
#include <vector>

#include "gateway/parsers/call_syntax.h"

namespace ferry {

class JsonCalls final : public CallSyntax {
 public:
  std::vector<std::string_view> tags() const override { return {kOpen, kClose}; }

 private:
  static constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>";
  // kBody: nothing is told yet. kArguments: the name is told. kRest: the arguments are complete.
  enum class State { kOutside, kBody, kArguments, kRest };

  bool Step(HeldText* held, bool at_end) override;
  bool StepBody(HeldText* held, bool at_end);
  bool StepArguments(HeldText* held, bool at_end);
  bool StepRest(HeldText* held, bool at_end);
  void EmitWhole(bool closed);

  State state_ = State::kOutside;
  std::string body_;
  int depth_ = 0;  // of brackets, in the arguments
  bool in_string_ = false, escaped_ = false;
};

}  // namespace ferry
