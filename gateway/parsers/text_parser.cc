#include "gateway/parsers/text_parser.h"

#include <algorithm>
#include <utility>

namespace ferry {
namespace {

constexpr std::string_view kThinkTag = "<think>", kEndThinkTag = "</think>";
constexpr std::string_view kTextSpaces = " \t\r\n";

}  // namespace

void AppendText(OutputEvent::Kind kind, std::string text, std::vector<OutputEvent>* events) {
  if (!text.empty()) events->push_back({.kind = kind, .text = std::move(text)});
}

void NoToolCalls::Parse(HeldText* held, bool, std::vector<OutputEvent>* events) {
  AppendText(OutputEvent::Kind::kContent, held->TakeAll(), events);
}

TextParser::TextParser(const TextParserOptions& options, std::unique_ptr<ToolCallSyntax> syntax,
                       const SpecialTokens& special_tokens)
    : state_(options.starts_in_reasoning ? State::kReasoning
             : options.has_reasoning     ? State::kBeginning
                                         : State::kContent),
      syntax_(std::move(syntax)) {
  std::vector<std::string_view> tags = syntax_->tags();
  tags.insert(tags.end(), {kThinkTag, kEndThinkTag});
  for (const std::string_view tag : tags) {
    if (const std::optional<int32_t> id = special_tokens.Find(tag)) tag_texts_.emplace(*id, tag);
  }
}

std::vector<OutputEvent> TextParser::Feed(std::span<const OutputToken> tokens) {
  for (const OutputToken& token : tokens) {
    const auto tag = token.text.empty() ? tag_texts_.find(token.id) : tag_texts_.end();
    held_.Push(characters_.Push(tag == tag_texts_.end() ? token.text : std::string_view(tag->second)));
  }
  std::vector<OutputEvent> events;
  Parse(/*at_end=*/false, &events);
  return events;
}

std::vector<OutputEvent> TextParser::Finish() {
  held_.Push(characters_.Flush());
  std::vector<OutputEvent> events;
  Parse(/*at_end=*/true, &events);
  return events;
}

void TextParser::Parse(bool at_end, std::vector<OutputEvent>* events) {
  if (state_ == State::kBeginning && !ParseBeginning(at_end)) return;
  if (state_ == State::kReasoning && !ParseReasoning(at_end, events)) return;
  if (state_ == State::kBehindReasoning) {
    if (!held_.SkipSpace()) return;
    state_ = State::kContent;
  }
  syntax_->Parse(&held_, at_end, events);
}

// Whether the state is known: the text begins with a think tag, or cannot.
bool TextParser::ParseBeginning(bool at_end) {
  const size_t begin = held_.text().find_first_not_of(kTextSpaces);
  const std::string_view text = begin == std::string_view::npos ? std::string_view() : held_.text().substr(begin);
  if (text.starts_with(kThinkTag)) {
    held_.Take({&kThinkTag, 1}, at_end);
    state_ = State::kReasoning;
    return true;
  }
  if (!at_end && kThinkTag.starts_with(text)) return false;
  state_ = State::kContent;
  return true;
}

// Whether the reasoning has ended.
bool TextParser::ParseReasoning(bool at_end, std::vector<OutputEvent>* events) {
  HeldText::Found found = held_.Take({&kEndThinkTag, 1}, at_end);
  EmitReasoning(std::move(found.before), found.tag >= 0, events);
  if (found.tag < 0) return false;
  state_ = State::kBehindReasoning;
  return true;
}

void TextParser::EmitReasoning(std::string text, bool ends, std::vector<OutputEvent>* events) {
  if (!reasoning_begun_) text.erase(0, std::min(text.find_first_not_of(kTextSpaces), text.size()));
  text = held_space_ + text;
  const size_t end = text.find_last_not_of(kTextSpaces) + 1;
  held_space_ = ends ? "" : text.substr(end);
  text.resize(end);
  reasoning_begun_ = reasoning_begun_ || !text.empty();
  AppendText(OutputEvent::Kind::kReasoning, std::move(text), events);
}

}  // namespace ferry
