#pragma once

// What the constraints' tests share: a small vocabulary, and whether a constraint's grammar has a text.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/constraint/automaton.h"
#include "coordinator/constraint/constraint.h"
#include "coordinator/constraint/pushdown.h"
#include "coordinator/constraint/token_trie.h"

namespace ferry::constraint {

// The 256 bytes, pieces of JSON and of text that cross the borders of strings, numbers and structure, one text twice, a
// token without bytes, and a control token whose text is JSON.
class SmallVocabulary : public TokenSource {
 public:
  SmallVocabulary() {
    for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
    for (const char* text : {"{\"",   "\":",    "\": ", "\": \"", "\",\"",  "\", \"", "\"}",   "\"},",   "\"}]",  "[[",
                             "]]",    "}}",     "},{",  ", ",     "\\\"",   "\\u00",  "\\n",   "true",   "false", "null",
                             "tr",    "ue",     "12",   "0.",     "00",     "1e",     "-1",    "19",     "name",  "ame",
                             "hello", " world", "a",    "ab",     "abc",    "é",      "日本",  "😀",      "é\"",   "\":1,",
                             ":{\"",  "[{\"",   "\n  ", "  ",     " {",     "\"a",    "\"b\"", "\"x\":", "[1,2]", "[\"\"",
                             "{}",    "[]",     "20",   "-0",     "T12:00", "hello"}) {
      tokens_.emplace_back(text);
    }
    tokens_.emplace_back();
    control_ = static_cast<int32_t>(tokens_.size());
    tokens_.emplace_back("{}");
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::string_view TokenBytes(int32_t id) const override { return tokens_[id]; }
  bool IsControl(int32_t id) const override { return id == control_; }
  int32_t control() const { return control_; }

 private:
  std::vector<std::string> tokens_;
  int32_t control_;
};

inline absl::StatusOr<Automaton> CompileAutomaton(const ConstraintSpec& spec) {
  ASSIGN_OR_RETURN(const Grammar grammar, ParseConstraint(spec));
  return Automaton::Compile(grammar);
}

// Whether the text satisfies the constraint; an error when the constraint is refused.
inline absl::StatusOr<bool> Accepts(const ConstraintSpec& spec, std::string_view text) {
  ASSIGN_OR_RETURN(const Automaton automaton, CompileAutomaton(spec));
  Pushdown pushdown(&automaton);
  Position position = pushdown.start();
  for (const char c : text) {
    position = pushdown.Advance(position, static_cast<uint8_t>(c));
    if (position == kNowhere) return false;
  }
  return pushdown.CanEnd(position);
}

inline ConstraintSpec Schema(std::string text) {
  return {.kind = ConstraintKind::kJsonSchema, .text = std::move(text), .choices = {}};
}
inline ConstraintSpec Regex(std::string text) { return {.kind = ConstraintKind::kRegex, .text = std::move(text), .choices = {}}; }
inline ConstraintSpec Gbnf(std::string text) { return {.kind = ConstraintKind::kGbnf, .text = std::move(text), .choices = {}}; }
inline ConstraintSpec Choice(std::vector<std::string> choices) {
  return {.kind = ConstraintKind::kChoice, .text = "", .choices = std::move(choices)};
}
inline ConstraintSpec JsonObject() { return {}; }

}  // namespace ferry::constraint
