#include "gateway/parsers/section_calls.h"

#include <algorithm>
#include <array>
#include <utility>

namespace ferry {
namespace {

constexpr std::string_view kFence = "```json";
constexpr std::string_view kSectionSpaces = " \t\r\n";

}  // namespace

SectionTags KimiTags() {
  return {"<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
          "<|tool_calls_section_end|>",   /*name_is_id=*/true};
}

SectionTags DeepSeekTags() {
  return {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"};
}

std::vector<std::string_view> SectionCalls::tags() const {
  return {tags_.section_begin, tags_.call_begin, tags_.separator, tags_.call_end, tags_.section_end};
}

bool SectionCalls::Step(HeldText* held, bool at_end) {
  switch (state_) {
    case State::kOutside: {
      const std::array<std::string_view, 5> tags = {tags_.call_begin, tags_.section_begin, tags_.section_end, tags_.call_end,
                                                    tags_.separator};
      HeldText::Found found = held->Take(tags, at_end);
      Content(std::move(found.before));
      if (found.tag == 0) state_ = State::kHeader;
      return found.tag >= 0;
    }
    case State::kHeader:
      return StepHeader(held, at_end);
    case State::kFencedHeader:
      return StepFencedHeader(held, at_end);
    case State::kArguments:
      return StepArguments(held, at_end);
  }
  return false;
}

// Up to the separator. A call that ends before is one without arguments.
bool SectionCalls::StepHeader(HeldText* held, bool at_end) {
  const std::array<std::string_view, 3> ends = {tags_.separator, tags_.call_end, tags_.section_end};
  HeldText::Found found = held->Take(ends, at_end);
  text_ += found.before;
  if (found.tag < 0 && !at_end) return false;
  const std::string header = Trimmed(std::exchange(text_, {}));
  fenced_ = found.tag == 0 && !tags_.name_is_id && header == "function";
  if (fenced_) {
    state_ = State::kFencedHeader;
    return true;
  }
  state_ = State::kOutside;
  if (!IsFunctionName(header)) {
    Content(header);
    return found.tag >= 0;
  }
  StartNamed(header);
  if (found.tag == 0) {
    state_ = State::kArguments;
  } else {
    EndCall(/*complete=*/found.tag > 0);
  }
  return found.tag >= 0;
}

// The name, behind "function" and a separator, ends with its line.
bool SectionCalls::StepFencedHeader(HeldText* held, bool at_end) {
  const std::array<std::string_view, 3> ends = {"\n", kFence, tags_.call_end};
  HeldText::Found found = held->Take(ends, at_end);
  text_ += found.before;
  if (found.tag < 0 && !at_end) return false;
  const std::string name = Trimmed(std::exchange(text_, {}));
  StartNamed(name);
  if (found.tag == 1) held->PutBack(kFence);
  state_ = State::kArguments;
  if (found.tag >= 0 && found.tag < 2) return true;
  EndCall(/*complete=*/found.tag == 2);
  state_ = State::kOutside;
  return found.tag >= 0;
}

void SectionCalls::StartNamed(std::string_view header) {
  begun_ = false;
  waiting_.clear();
  if (!tags_.name_is_id) {
    StartCall(std::string(header));
    return;
  }
  std::string_view name = header;
  if (name.starts_with("functions.")) name.remove_prefix(std::string_view("functions.").size());
  StartCall(std::string(name.substr(0, name.rfind(':'))), std::string(header));
}

bool SectionCalls::StepArguments(HeldText* held, bool at_end) {
  if (!begun_) {
    // What comes before the JSON: white space and the fence.
    if (!held->SkipSpace() && !at_end) return false;
    if (fenced_ && kFence.starts_with(held->text()) && held->text().size() < kFence.size() && !at_end) return false;
    if (fenced_ && held->text().starts_with(kFence)) {
      held->Take({&kFence, 1}, at_end);
      return true;  // white space follows
    }
    begun_ = true;
  }
  const std::array<std::string_view, 2> ends = {tags_.call_end, tags_.section_end};
  HeldText::Found found = held->Take(ends, at_end);
  const bool ended = found.tag >= 0 || at_end;
  EmitArguments(std::move(found.before), ended);
  if (!ended) return false;
  EndCall(/*complete=*/found.tag >= 0);
  state_ = State::kOutside;
  return found.tag >= 0;
}

void SectionCalls::EmitArguments(std::string text, bool ends) {
  text = std::exchange(waiting_, {}) + text;
  const std::string_view dropped = fenced_ ? " \t\r\n`" : kSectionSpaces;
  const size_t end = text.find_last_not_of(dropped) + 1;
  if (!ends) waiting_ = text.substr(end);
  text.resize(end);
  Arguments(std::move(text));
}

}  // namespace ferry
