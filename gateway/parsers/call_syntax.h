#pragma once

// What the syntaxes of tool calls have in common: content around calls, and the events of a call.

#include <string>
#include <string_view>
#include <vector>

#include "gateway/parsers/text_parser.h"

namespace ferry {

class CallSyntax : public ToolCallSyntax {
 public:
  void Parse(HeldText* held, bool at_end, std::vector<OutputEvent>* events) final;

 protected:
  // Takes one part of `held`: false when nothing more can be told of it. With `at_end` everything is taken.
  virtual bool Step(HeldText* held, bool at_end) = 0;

  // Text outside calls. White space around calls belongs to the format, and is dropped.
  void Content(std::string text);
  void StartCall(std::string name, std::string id = "");
  void Arguments(std::string text);
  void EndCall(bool complete = true);  // not `complete`: the output was cut off within it

  static bool IsFunctionName(std::string_view name);
  static std::string Trimmed(std::string_view text);

 private:
  std::vector<OutputEvent>* events_ = nullptr;  // while Parse runs
  std::string space_;                           // behind the content so far
  std::string arguments_;
  int num_calls_ = 0;
  bool behind_call_ = false;
};

}  // namespace ferry
