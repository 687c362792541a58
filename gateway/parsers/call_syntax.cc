#include "gateway/parsers/call_syntax.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"

namespace ferry {
namespace {

constexpr std::string_view kSpaces = " \t\r\n";
constexpr size_t kMaxNameBytes = 256;

}  // namespace

void CallSyntax::Parse(HeldText* held, bool at_end, std::vector<OutputEvent>* events) {
  events_ = events;
  while (Step(held, at_end)) {
  }
  if (at_end) AppendText(OutputEvent::Kind::kContent, behind_call_ ? "" : std::exchange(space_, {}), events_);
  events_ = nullptr;
}

void CallSyntax::Content(std::string text) {
  text = std::exchange(space_, {}) + text;
  if (behind_call_) text.erase(0, std::min(text.find_first_not_of(kSpaces), text.size()));
  const size_t end = text.find_last_not_of(kSpaces) + 1;
  space_ = text.substr(end);
  text.resize(end);
  behind_call_ = behind_call_ && text.empty();
  AppendText(OutputEvent::Kind::kContent, std::move(text), events_);
}

void CallSyntax::StartCall(std::string name, std::string id) {
  space_.clear();
  arguments_.clear();
  events_->push_back(
      {.kind = OutputEvent::Kind::kToolCallStart, .tool_call = num_calls_, .name = std::move(name), .id = std::move(id)});
}

void CallSyntax::Arguments(std::string text) {
  if (text.empty()) return;
  arguments_ += text;
  events_->push_back({.kind = OutputEvent::Kind::kToolCallArguments, .text = std::move(text), .tool_call = num_calls_});
}

void CallSyntax::EndCall(bool complete) {
  const bool valid = complete && Json::parse(arguments_, nullptr, /*allow_exceptions=*/false).is_object();
  events_->push_back({.kind = OutputEvent::Kind::kToolCallEnd, .tool_call = num_calls_++, .arguments_valid = valid});
  behind_call_ = true;
}

bool CallSyntax::IsFunctionName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' || c == ':' || c == '/' ||
           (c & 0x80);
  });
}

std::string CallSyntax::Trimmed(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(kSpaces), text.size());
  return std::string(text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin));
}

}  // namespace ferry
