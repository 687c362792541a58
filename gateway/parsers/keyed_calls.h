#pragma once

// Tool calls whose arguments are written one by one between tags:
//
//   GLM-4.5       <tool_call>NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> ... </tool_call>
//   Qwen3-Coder   <tool_call> <function=NAME> <parameter=KEY> VALUE </parameter> ... </function> </tool_call>
//
// A value is text where the function's schema says "string", else JSON where it parses.

#include <string>
#include <vector>

#include "gateway/parsers/call_syntax.h"

namespace ferry {

struct KeyedTags {
  std::vector<std::string_view> open;       // a call begins; the last of them comes directly before the name
  std::vector<std::string_view> close;      // a call ends
  std::vector<std::string_view> name_ends;  // behind the name; it is put back where it begins with "<"
  std::string_view key_open, key_close, value_open, value_close;  // value_open is empty where the key's end opens the value
  bool strips_newlines = false;                                   // one at each end of a value belongs to the format
};

KeyedTags GlmTags();
KeyedTags QwenXmlTags();

class KeyedCalls final : public CallSyntax {
 public:
  KeyedCalls(KeyedTags tags, Json tools) : tags_(std::move(tags)), tools_(std::move(tools)) {}
  std::vector<std::string_view> tags() const override;

 private:
  enum class State { kOutside, kName, kBetween, kKey, kBeforeValue, kValue };

  bool Step(HeldText* held, bool at_end) override;
  bool StepOutside(HeldText* held, bool at_end);
  bool StepName(HeldText* held, bool at_end);
  bool StepBetween(HeldText* held, bool at_end);
  bool StepKey(HeldText* held, bool at_end);
  bool StepValue(HeldText* held, bool at_end);
  // Takes text up to one of `tags` into text_: the tag, or -1.
  int TakeUntil(HeldText* held, const std::vector<std::string_view>& tags, bool at_end);
  void EmitArgument(const std::string& value);
  void CloseCall(bool complete);

  const KeyedTags tags_;
  const Json tools_;
  State state_ = State::kOutside;
  std::string opened_by_;  // the tag, for text that turns out to be no call
  std::string text_;       // of the part in progress
  std::string name_, key_;
  int num_arguments_ = 0;
};

}  // namespace ferry
