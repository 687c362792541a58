#pragma once

// Outputs for parsers, and their events in a form that is read at a glance.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/chat/chat_format.h"
#include "gateway/chat/output_parser.h"

namespace ferry {

// A vocabulary of special tokens alone: ids as they are given, or counted from 100.
class FakeSpecialTokens final : public SpecialTokens {
 public:
  FakeSpecialTokens() = default;
  explicit FakeSpecialTokens(std::vector<std::string> texts) {
    for (std::string& text : texts) ids_.emplace(std::move(text), 100 + static_cast<int32_t>(ids_.size()));
  }
  explicit FakeSpecialTokens(std::map<std::string, int32_t> ids) : ids_(std::move(ids)) {}
  std::optional<int32_t> Find(std::string_view text) const override {
    const auto found = ids_.find(std::string(text));
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

 private:
  std::map<std::string, int32_t> ids_;
};

// Neighbouring events of text joined: "R(reasoning)", "C(content)", "P(preamble)", "call NAME #ID(arguments)", with "!" behind
// arguments that are not valid, and "?" for a call that has not ended.
inline std::string Shown(const std::vector<OutputEvent>& events) {
  std::string shown, open;
  const auto begin = [&](const std::string& what) {
    if (open == what) return;
    if (!open.empty()) shown += open == "call" ? "?" : ") ";
    open = what;
    if (what != "call") shown += what + "(";
  };
  for (const OutputEvent& event : events) {
    switch (event.kind) {
      case OutputEvent::Kind::kReasoning:
        begin("R");
        shown += event.text;
        break;
      case OutputEvent::Kind::kContent:
        begin(event.is_preamble ? "P" : "C");
        shown += event.text;
        break;
      case OutputEvent::Kind::kToolCallStart:
        begin("call");
        shown += "call " + event.name + (event.id.empty() ? "" : " #" + event.id) + "(";
        break;
      case OutputEvent::Kind::kToolCallArguments:
        shown += event.text;
        break;
      case OutputEvent::Kind::kToolCallEnd:
        shown += event.arguments_valid ? ") " : ")! ";
        open.clear();
        break;
    }
  }
  if (!open.empty()) shown += open == "call" ? "?" : ")";
  while (shown.ends_with(' ')) shown.pop_back();
  return shown;
}

// What `parser` makes of `text`, fed in pieces of `bytes`.
inline std::string ParseText(OutputParser& parser, std::string_view text, size_t bytes = 1) {
  std::vector<OutputEvent> events;
  for (size_t i = 0; i < text.size(); i += bytes) {
    const OutputToken token{0, text.substr(i, bytes)};
    for (OutputEvent& event : parser.Feed({&token, 1})) events.push_back(std::move(event));
  }
  for (OutputEvent& event : parser.Finish()) events.push_back(std::move(event));
  return Shown(events);
}

}  // namespace ferry
