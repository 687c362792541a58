#pragma once

// Tool calls in a section of their own, with tags that are tokens, and arguments as JSON:
//
//   Kimi-K2         <|tool_calls_section_begin|> <|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}
//                   <|tool_call_end|> ... <|tool_calls_section_end|>
//   DeepSeek-V3.1   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜> ...
//   <｜tool▁calls▁end｜> DeepSeek-V3     the same with function<｜tool▁sep｜>NAME, and {...} fenced by ```json and ```

#include <string>
#include <vector>

#include "gateway/parsers/call_syntax.h"

namespace ferry {

struct SectionTags {
  std::string_view section_begin, call_begin, separator, call_end, section_end;
  bool name_is_id = false;  // "functions.NAME:0" is the call's id, and holds its name
};

SectionTags KimiTags();
SectionTags DeepSeekTags();

class SectionCalls final : public CallSyntax {
 public:
  explicit SectionCalls(const SectionTags& tags) : tags_(tags) {}
  std::vector<std::string_view> tags() const override;

 private:
  enum class State { kOutside, kHeader, kFencedHeader, kArguments };

  bool Step(HeldText* held, bool at_end) override;
  bool StepHeader(HeldText* held, bool at_end);
  bool StepFencedHeader(HeldText* held, bool at_end);
  bool StepArguments(HeldText* held, bool at_end);
  void StartNamed(std::string_view header);
  void EmitArguments(std::string text, bool ends);

  const SectionTags tags_;
  State state_ = State::kOutside;
  std::string text_;     // of the header
  bool fenced_ = false;  // DeepSeek-V3
  std::string waiting_;  // white space and a closing fence at the end of the arguments so far
  bool begun_ = false;   // the arguments
};

}  // namespace ferry
