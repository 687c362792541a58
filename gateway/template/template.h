#pragma once

// Chat templates: the part of Jinja that the templates of model files use, with the settings that Hugging Face gives it
// (trim_blocks and lstrip_blocks on, no escaping, Python's text forms of values).
//
// Known are the statements if, for, set, macro, generation and raw; all of Jinja's operators; and the filters, tests,
// methods and functions listed in filters.cc, tests.cc, methods.cc and functions.cc. Everything else is refused when the template
// is parsed, or when it is reached where only the value's type can tell.
//
// A template comes with a model file that anybody may have made: what it may take is bounded by Limits.

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "common/text_piece.h"

namespace ferry::jinja {

struct Limits {
  size_t output_bytes = size_t{64} << 20;   // of the result, and of any string on the way
  size_t memory_bytes = size_t{256} << 20;  // of the values alive during one rendering
  int64_t steps = 20'000'000;               // statements and expressions evaluated
  int depth = 256;                          // of macro calls, blocks and expressions within one another
  absl::Duration time = absl::Seconds(5);
};

inline constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

struct Variables {
  nlohmann::ordered_json from_user = nlohmann::ordered_json::object();    // messages, tools: strings in it are marked
  nlohmann::ordered_json from_server = nlohmann::ordered_json::object();  // bos_token, add_generation_prompt
};

struct ParsedTemplate;  // ast.h

// Immutable; Render may be called from any thread.
class Template {
 public:
  // InvalidArgument names the line and the fault.
  static absl::StatusOr<std::unique_ptr<Template>> Parse(std::string_view source);
  ~Template();

  // The text that the template makes of `variables`; those from the server hide those from the user. `now` is what
  // strftime_now shows, in UTC. Neighbouring pieces differ in from_user.
  // InvalidArgument: the template called raise_exception, or an operation does not fit its values: the message names the
  // line. ResourceExhausted or DeadlineExceeded: a limit was reached.
  absl::StatusOr<std::vector<TextPiece>> Render(const Variables& variables, absl::Time now, const Limits& limits = {}) const;

 private:
  explicit Template(std::unique_ptr<const ParsedTemplate> parsed);
  const std::unique_ptr<const ParsedTemplate> parsed_;
};

}  // namespace ferry::jinja
