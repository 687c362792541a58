#pragma once

// The parts of JSON texts that a schema's values are made of.
//
// White space is bounded, so that a model cannot fill its answer with it: nothing, one space, or a line's end and up to 40
// spaces and tabs. Numbers without bounds have at most 16 digits before the point, 16 behind it and an exponent of two.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "coordinator/constraint/code_points.h"
#include "coordinator/constraint/grammar.h"

namespace ferry::constraint {

struct StringLimits {
  int64_t min_length = 0;             // in characters
  std::optional<int64_t> max_length;  // above 2,000 it is rounded down to one less than a multiple of 500
  std::optional<std::string> pattern;
  std::optional<std::string> format;
};

class JsonTerms {
 public:
  explicit JsonTerms(Grammar* grammar) : grammar_(*grammar) {}

  ExprId Space();
  ExprId Number();
  ExprId Integer();
  ExprId String();
  ExprId AnyValue();
  ExprId AnyObject();
  // InvalidArgument: a format that is not known, or a pattern that ParseRegex refuses.
  absl::StatusOr<ExprId> String(const StringLimits& limits);
  // The contents of such a string, written plainly. InvalidArgument as above, or a length above 2,000.
  absl::StatusOr<ExprId> Plain(const StringLimits& limits);
  // The strings that are written without escapes and are none of `names`: keys beside those that are declared.
  ExprId KeyExcept(const std::vector<std::string>& names);
  // A comma, with white space around it.
  ExprId Comma();

 private:
  ExprId Shared(const std::string& name, ExprId (JsonTerms::*make)());
  ExprId MakeSpace();
  ExprId MakeNumber();
  ExprId MakeInteger();
  ExprId MakeString();
  ExprId MakeAnyObject();
  ExprId MakeAnyValue();
  ExprId MakeBlock();
  ExprId ShortCharacter();  // of a string whose length counts: unescaped, or with an escape of two bytes
  absl::StatusOr<ExprId> Lengths(const StringLimits& limits);
  // Of pattern and format, as far as there are any.
  absl::StatusOr<std::vector<ExprId>> Conditions(const StringLimits& limits, TextForm form);
  absl::StatusOr<ExprId> Contents(const StringLimits& limits);

  Grammar& grammar_;
  std::map<std::string, RuleId> rules_;
};

// The regular expressions behind "format"; nullptr when there is none of this name.
const char* RegexOfFormat(std::string_view format);
// "date, time, ...", for messages.
std::string NamesOfFormats();

}  // namespace ferry::constraint
