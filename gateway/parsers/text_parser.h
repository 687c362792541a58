#pragma once

// The base of parsers that read an output's text: reasoning in think tags, then content and what else the format has.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "gateway/chat/chat_format.h"
#include "gateway/chat/held_text.h"
#include "gateway/chat/output_parser.h"
#include "gateway/parsers/whole_characters.h"

namespace ferry {

struct TextParserOptions {
  bool has_reasoning = false;        // "<think>" at the beginning opens a reasoning
  bool starts_in_reasoning = false;  // the prompt has opened it
};

// Text parsed behind the reasoning: tool calls between tags, and the content around them. One format's.
class ToolCallSyntax {
 public:
  virtual ~ToolCallSyntax() = default;

  // Every tag of the format, so that they are found by their token ids.
  virtual std::vector<std::string_view> tags() const = 0;
  // Takes from `held` what can be told, and appends its events; with `at_end` takes everything.
  virtual void Parse(HeldText* held, bool at_end, std::vector<OutputEvent>* events) = 0;
};

// Without calls: all text is content.
class NoToolCalls final : public ToolCallSyntax {
 public:
  std::vector<std::string_view> tags() const override { return {}; }
  void Parse(HeldText* held, bool at_end, std::vector<OutputEvent>* events) override;
};

class TextParser final : public OutputParser {
 public:
  TextParser(const TextParserOptions& options, std::unique_ptr<ToolCallSyntax> syntax, const SpecialTokens& special_tokens);

  std::vector<OutputEvent> Feed(std::span<const OutputToken> tokens) override;
  std::vector<OutputEvent> Finish() override;

 private:
  enum class State { kBeginning, kReasoning, kBehindReasoning, kContent };

  void Parse(bool at_end, std::vector<OutputEvent>* events);
  bool ParseBeginning(bool at_end);
  bool ParseReasoning(bool at_end, std::vector<OutputEvent>* events);
  void EmitReasoning(std::string text, bool ends, std::vector<OutputEvent>* events);

  State state_;
  const std::unique_ptr<ToolCallSyntax> syntax_;
  absl::flat_hash_map<int32_t, std::string> tag_texts_;
  WholeCharacters characters_;
  HeldText held_;
  bool reasoning_begun_ = false;
  std::string held_space_;  // behind the reasoning so far: dropped where the reasoning ends
};

// Appends an event of `kind` with `text`, unless that is empty.
void AppendText(OutputEvent::Kind kind, std::string text, std::vector<OutputEvent>* events);

}  // namespace ferry
